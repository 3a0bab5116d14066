"""Carriers: small processes in which descriptors that a peer made are received, passed on and closed.

close(2) of somebody else's descriptor can take as long as its maker likes: a TCP socket with SO_LINGER and unsent data,
a file on a FUSE file system that does not answer. Descriptors that wait unread in a socket are closed by whoever
closes that socket last. So no event loop of sockguard receives such a descriptor, and none closes a socket in which
one may wait (privsep/foreign.py). A carrier does both. It has a descriptor table of its own and works for one user at
a time, and one that does not come back is written off (pool.py).

    master.py     a process that each relay, and control, starts before it reads anything; it forks the others
    carrier.py    passes on the descriptors of one message at a time, or keeps them until it is told what to do
    disposal.py   hands a socket to a process that exits: what it held is released there
    pool.py       which carrier works for which user, on behalf of a relay's event loop
    jobs.py       what is said between them
"""
