"""Whether anyone but sockguard can reach a proxy's backend around it. Looks at folders and sockets, connects to none.

Connecting to a socket by its path needs search permission on every folder of the way and write permission on the
socket (unix(7)). Who can write one of those folders need not connect: they can put a socket of their own in its place,
and get what sockguard sends. Root, sockguard and the account that owns the socket, the service, are trusted.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final, Literal

from sockguard.checks.acl import SEARCH, WRITE, Tag, grants
from sockguard.checks.audience import ANYONE, Principal, principals
from sockguard.checks.members import MembersOf, account_text, group_text, local_members, user_text
from sockguard.checks.walk import End, Node, Step, Walk, walk
from sockguard.config.settings import Proxy
from sockguard.policy.lint import Finding

SHARED_FOLDERS: Final = frozenset(
    {"/", "/dev", "/etc", "/home", "/opt", "/root", "/run", "/run/user", "/srv", "/usr", "/var"}
    | {"/var/cache", "/var/lib", "/var/opt", "/var/run", "/var/spool"}
)
"""Folders that many services use (hier(7)), beside the sticky ones: no remedy may close one of them."""


def backend_findings(
    proxy: Proxy, guards: Set[int], guard_gids: Set[int], *, members_of: MembersOf | None = None
) -> list[Finding]:
    """Say how others than sockguard can reach the backend of a proxy. Never raises; asks no network but name services.

    ``guards`` are the uids that are sockguard's own, ``guard_gids`` the groups by which it reaches backends: their
    members count as others unless they are guards. Empty when nobody else gets through.
    """
    subject = f"proxy.{proxy.name}.backend"
    if not proxy.backend.startswith("/"):
        text = f"{_shown(proxy.backend)} is no absolute path: what has no folder has nobody to keep it"
        return [Finding("error", subject, text, "give the path of a socket in a folder of its own")]
    try:
        way = walk(proxy.backend)
        trusted = {0, *guards, _service(way)}
        nodes = [node for step in way.steps for node in (*step.folders, step.found) if node is not None]
        everybody = principals(nodes, trusted, guard_gids, members_of or local_members())
        case = _Case(subject, way, trusted, everybody, guard_gids)
        found = [*case.reached(), *case.replaced(), *case.state()]
    except (OSError, ValueError) as error:
        found = [Finding("warning", subject, f"could not be looked at: {error}", "look at it by hand: namei -l")]
    return list(dict.fromkeys(found))


def _service(way: Walk) -> int:
    """The uid of the service: who owns the socket, or, as long as none is seen, the last folder that is."""
    return (way.target or way.folders[-1]).access.uid


@dataclass(frozen=True, slots=True)
class _Case:
    """One backend, and what is known of the way to it."""

    subject: str
    way: Walk
    trusted: Set[int]
    everybody: Sequence[Principal]
    guard_gids: Set[int]

    def reached(self) -> Iterator[Finding]:
        """Who can connect. Of a socket that is not there yet: whom no folder will keep from it."""
        way, target = self.way, self.way.target
        if target is not None and stat.S_ISSOCK(target.mode):
            able = [who for who in self._searching(way.folders) if _may(target, who, WRITE)]
            for who in _most(able):
                text = f"{who} can connect to {_shown(target.path)}, around sockguard"
                yield self._by(who, text, self._closing(who))
        elif way.end is End.MISSING and way.last:
            for who in _most(self._searching(way.folders)):
                text = f"no folder will keep {who} from {_shown(way.stopped)}, only its own mode can"
                yield self._finding("warning", text, self._closing(who))

    def replaced(self) -> Iterator[Finding]:
        """Who can put something else in the place of the socket, or of a folder or symlink on the way."""
        for step in self.way.steps:
            folder = step.folders[-1]
            owner = folder.access.uid
            if owner not in self.trusted:
                text = f"{user_text(owner)} owns {_shown(folder.path)} and can replace {_shown(step.path)}"
                yield self._finding("error", text, self._giving(folder))
            writers = [
                who
                for who in self._searching(step.folders)
                if _may(folder, who, WRITE | SEARCH) and (who.uid is None or who.uid != owner)
            ]
            yield from self._written(step, writers)

    def _written(self, step: Step, writers: Sequence[Principal]) -> Iterator[Finding]:
        folder, entry = step.folders[-1], _shown(step.path)
        theirs = f"{_shown(folder.path)} is writable for them"
        if step.found is None:
            for who in _most(writers):
                yield self._by(who, f"{who} can make {entry} first: {theirs}", self._unwritable(folder))
        elif not folder.mode & stat.S_ISVTX:
            for who in _most(writers):
                yield self._by(who, f"{who} can replace {entry}: {theirs}", self._unwritable(folder))
        elif not stat.S_ISDIR(step.found.mode):  # who owns a folder is looked at where that folder is the last one
            for who in writers:
                if who.uid == step.found.access.uid:
                    yield self._by(who, f"{who} can replace {entry}, being its owner", self._unwritable(folder))
            if stat.S_ISSOCK(step.found.mode):
                for who in _most(writers):
                    text = f"{who} can make {entry} while the service is down: {theirs}"
                    yield self._finding("warning", text, self._unwritable(folder))

    def state(self) -> Iterator[Finding]:
        """What is to be said of the way itself."""
        way, stopped = self.way, _shown(self.way.stopped)
        for node in dict.fromkeys([*way.folders, *(step.found for step in way.steps if step.found is not None)]):
            if node.fault is not None:
                text = f"the ACL of {_shown(node.path)} could not be read ({node.fault}); judged by its mode alone"
                yield self._finding("warning", text, f"look at it by hand: getfacl {_quoted(node.path)}")
        if way.end is End.MISSING and way.last:
            yield self._finding("warning", f"{stopped} does not exist yet", "start the service")
        elif way.end is End.MISSING:
            text = f"{stopped}, a folder on the way, does not exist yet"
            yield self._finding("warning", text, f"start the service, or {self._making(_quoted(way.stopped))}")
        elif way.end is End.UNSEEN:
            text = f"{stopped} cannot be seen from here: run as root"
            yield self._finding("info", text, "sudo sockguard check --system")
        elif way.end is End.NO_FOLDER:
            yield self._finding("error", f"{stopped}, on the way, is no folder", "correct the path")
        elif way.end is End.TOO_MANY_LINKS:
            yield self._finding("error", f"{stopped} leads through too many symlinks", "correct the path")
        elif way.target is not None and not stat.S_ISSOCK(way.target.mode):
            yield self._finding("error", f"{_shown(way.target.path)} is no socket", "correct the path")
        elif way.target is not None and way.target.links > 1:
            text = f"{_shown(way.target.path)} has {way.target.links} hard links, of which only this one was looked at"
            yield self._finding("warning", text, "remove them, or have the service make its socket anew")

    def _searching(self, folders: Sequence[Node]) -> list[Principal]:
        return [who for who in self.everybody if all(_may(folder, who, SEARCH) for folder in folders)]

    def _by(self, who: Principal, text: str, remedy: str) -> Finding:
        """A finding about somebody: an error, unless nobody is known who could do it."""
        return self._finding("error" if who.names or who == ANYONE else "warning", text, remedy)

    def _finding(self, severity: Literal["error", "warning", "info"], text: str, remedy: str) -> Finding:
        return Finding(severity, self.subject, text, remedy)

    def _closing(self, who: Principal) -> str:
        """How to keep somebody out: by the folder that the socket stands in, the only one that is the service's own."""
        folder = self.way.folders[-1]
        if who.uid is None and who.gids and who.gids <= self.guard_gids:
            groups = " and ".join(group_text(gid) for gid in sorted(who.gids))
            return f"take {', '.join(who.names)} out of {groups}"
        if _shared(folder):
            return self._moving()
        if who.uid is not None and who.uid == folder.access.uid:
            return self._giving(folder)
        path, group = _quoted(folder.path), self._group()
        close = f"chgrp {group} {path} && chmod 0710 {path}" if group else f"chmod 0700 {path}"
        return f"setfacl -b {path} && {close}" if _has_acl(folder) else close

    def _unwritable(self, folder: Node) -> str:
        if _shared(folder):
            return self._moving()
        path = _quoted(folder.path)
        return f"setfacl -b {path} && chmod go-w {path}" if _has_acl(folder) else f"chmod go-w {path}"

    def _giving(self, folder: Node) -> str:
        """The socket's own folder belongs to the service, every one above it to root."""
        target = self.way.target
        owner = target.access.uid if target is not None and folder == self.way.folders[-1] else 0
        return f"chown {shlex.quote(account_text(owner))} {_quoted(folder.path)}"

    def _moving(self) -> str:
        return f"move the socket to a folder of its own: {self._making('FOLDER')}"

    def _making(self, path: str) -> str:
        group = self._group()
        return f"install -d -o SERVICE -g {group} -m 0710 {path}" if group else f"install -d -o SERVICE -m 0700 {path}"

    def _group(self) -> str | None:
        return next((shlex.quote(group_text(gid)) for gid in sorted(self.guard_gids)), None)


def _may(node: Node, who: Principal, wanted: int) -> bool:
    return grants(node.access, who.uid, who.gids, wanted)


def _most(able: Sequence[Principal]) -> Sequence[Principal]:
    """Where anyone can, there is no need to list who else."""
    return [ANYONE] if ANYONE in able else able


def _shared(folder: Node) -> bool:
    return folder.path in SHARED_FOLDERS or bool(folder.mode & stat.S_ISVTX)


def _has_acl(node: Node) -> bool:
    return any(entry.tag in (Tag.USER, Tag.GROUP) for entry in node.access.acl)


def _shown(path: str) -> str:
    """A path for people: others may have made the names in it, and they must stay one line."""
    return path if path.isprintable() else ascii(path)


def _quoted(path: str) -> str:
    return shlex.quote(_shown(path))
