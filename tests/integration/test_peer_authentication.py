"""Servers that know their clients by the kernel's word alone, with `identity = "client"`: each user is who he is."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from sockguard.privsep.rights import CONTROL_USER
from tests.support.identities import Person, account, account_if_missing
from tests.support.servers import Postgresql, as_user, guarded, postgresql, private_folder, run, ssh_agent

pytestmark = pytest.mark.root

PSQL = ("psql", "--no-psqlrc", "--host=DIR", "--dbname=postgres", "--no-align", "--tuples-only")


class People(NamedTuple):
    """ann and bob have roles in the database, eve has none. sockguard admits them all.

    There is a user sockguard, too: the monitor, which is root, connects as one user and goes to the file as another.
    """

    ann: Person
    bob: Person
    eve: Person


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    with ExitStack() as made:
        made.enter_context(account_if_missing(CONTROL_USER))
        yield People(*(made.enter_context(account(f"sgp{os.getpid()}{name}")) for name in People._fields))


def admitting(people: People) -> str:
    return f"users = {[person.uid for person in people]}\n"


def as_client(people: People) -> str:
    """More of the proxy's configuration: it shows the client."""
    return f'identity = "client"\n[[proxy.server.allow]]\n{admitting(people)}'


def as_sockguard(people: People, listen: Path, backend: Path) -> str:
    """A second proxy, which does not."""
    return f'[proxy.plain]\nlisten = "{listen}"\nbackend = "{backend}"\nallow = [{{ {admitting(people).strip()} }}]\n'


def test_postgresql_by_peer(folder: Path, people: People) -> None:
    """Each user is logged in as the role of his own name and as no other, as on the server's own socket."""
    ann, bob, eve = people
    plain = folder / "plain" / Postgresql.SOCKET
    plain.parent.mkdir()
    more = as_client(people) + as_sockguard(people, plain, folder / "private" / Postgresql.SOCKET)
    with postgresql(folder, auth="peer"), guarded(folder, Postgresql.SOCKET, more) as guard:
        roles = (
            f"CREATE ROLE {ann.name} LOGIN; CREATE ROLE {bob.name} LOGIN; "
            f"CREATE TABLE t AS SELECT 'of ann' AS word; GRANT SELECT ON t TO {ann.name}"
        )
        made = run([*as_user("postgres"), "psql", f"--host={folder}/private", "-c", roles])
        assert made.returncode == 0, made.stderr

        for person in (ann, bob):
            one = guard.compare(*as_user(person.name), *PSQL, "-c", "SELECT current_user, session_user", uid=None)
            assert one.stdout == f"{person.name}|{person.name}\n".encode(), one.stderr
        read = (*PSQL, "-c", "SELECT word FROM t")
        assert guard.compare(*as_user(ann.name), *read, uid=None).stdout == b"of ann\n"
        assert b"permission denied for table t" in guard.compare(*as_user(bob.name), *read, uid=None).stderr

        other = guard.compare(*as_user(bob.name), *PSQL, "-U", ann.name, "-c", "SELECT 1", uid=None)
        assert f'FATAL:  Peer authentication failed for user "{ann.name}"\n'.encode() in other.stderr
        other = guard.compare(*as_user(eve.name), *PSQL, "-U", ann.name, "-c", "SELECT 1", uid=None)
        assert f'FATAL:  Peer authentication failed for user "{ann.name}"\n'.encode() in other.stderr
        none = guard.compare(*as_user(eve.name), *PSQL, "-c", "SELECT 1", uid=None)
        assert f'FATAL:  role "{eve.name}" does not exist\n'.encode() in none.stderr

        # And without the identity it fails: the server sees sockguard.
        unknown = dataclasses.replace(guard, public=plain)
        lost = unknown.client(*as_user(ann.name), *PSQL, "-c", "SELECT current_user", uid=None)
        assert (lost.returncode, lost.stdout) == (2, b"")
        assert f'FATAL:  Peer authentication failed for user "{ann.name}"\n'.encode() in lost.stderr
        assert guard.daemon.events("connection_denied") == []


def test_an_agent_of_ones_own(folder: Path, people: People) -> None:
    """A user's agent takes him and refuses, by its own check, another user whom sockguard's rules admit."""
    ann, bob, _ = people
    private = private_folder(folder, ann.uid) / "agent.sock"
    list_keys = ("env", "SSH_AUTH_SOCK=PATH", "ssh-add", "-l")
    with ssh_agent(private, ann.uid), guarded(folder, private.name, as_client(people)) as guard:
        private.chmod(0o666)  # for whoever comes as far: the folder's group, which is sockguard
        log = private.parent / "log"
        own = guard.compare(*as_user(ann.name), *list_keys, uid=None)
        assert (own.returncode, own.stdout) == (1, b"The agent has no identities.\n")
        assert "uid mismatch" not in log.read_text()

        refused = guard.client(*as_user(bob.name), *list_keys, uid=None)
        # The agent closes at once: an error or, where the client writes after that, a signal, as without the guard.
        assert refused.returncode in (1, -signal.SIGPIPE)
        assert refused.stdout == b""
        assert log.read_text().count(f"uid mismatch: peer euid {bob.uid} != uid {ann.uid}") == 1
        closed = guard.daemon.wait_for("connection_closed", lambda event: event["uid"] == bob.uid)
        assert closed["bytes_from_backend"] == 0
        assert guard.daemon.events("connection_denied") == []
