"""ssh-agent behind sockguard: one agent's keys for users that rules choose.

ssh-agent itself refuses peers whose uid is neither its own nor 0 (openssh, ssh-agent.c, handle_socket_read). Behind a
proxy with `identity = "proxy"` its peer is always sockguard's control process, so that check says nothing about the
client any more: sockguard's rules take its place, and the agent has to run as the user sockguard (or control as root).
A user's own agent, checked for that user, needs `identity = "client"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import (
    ALLOWED,
    Guarded,
    as_uid,
    control_ids,
    guarded,
    private_folder,
    run,
    ssh_agent,
)

pytestmark = pytest.mark.root


@pytest.fixture
def guard(folder: Path) -> Iterator[Guarded]:
    private = private_folder(folder, control_ids()[0]) / "agent.sock"
    with ssh_agent(private), guarded(folder, private.name) as server:
        yield server


def agent(*command: str) -> tuple[str, ...]:
    """A client of the agent at PATH."""
    return ("env", "SSH_AUTH_SOCK=PATH", *command)


def test_keys_are_added_listed_and_used(folder: Path, guard: Guarded) -> None:
    """Adding, listing and signing work as with the agent itself; a signature made through the guard is good."""
    work = folder / "work"
    work.mkdir()
    work.chmod(0o777)
    (work / "letter").write_text("a letter")
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "key of the test", "-f", f"{work}/key"], uid=ALLOWED)

    assert guard.compare(*agent("ssh-add", "-l")).stdout == b"The agent has no identities.\n"
    added = guard.client(*agent("ssh-add", f"{work}/key"))
    assert (added.returncode, added.stderr) == (0, f"Identity added: {work}/key (key of the test)\n".encode())
    assert b"key of the test (ED25519)" in guard.compare(*agent("ssh-add", "-l")).stdout
    guard.compare(*agent("ssh-add", "-L"))

    (work / "key").unlink()  # so that only the agent can sign
    sign = agent("ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", f"{work}/key.pub")
    signed = guard.compare(*sign, data=b"a letter")  # ed25519 signatures are the same each time
    (work / "sig").write_bytes(signed.stdout)
    (work / "signers").write_bytes(b"me " + (work / "key.pub").read_bytes())
    check = ["ssh-keygen", "-Y", "verify", "-f", f"{work}/signers", "-I", "me", "-n", "file", "-s", f"{work}/sig"]
    assert run(check, data=b"a letter").returncode == 0
    assert run(check, data=b"another letter").returncode == 255

    guard.refused(*agent("ssh-add", "-l"), says=rb"^error fetching identities: |^Error connecting to agent: ")
    assert {event["outcome"] for event in guard.daemon.events("connection_closed")} == {"closed"}


def test_the_agent_sees_sockguard(guard: Guarded) -> None:
    """Without the guard, the agent refuses that user by itself: what lets him in is the rule."""
    guard.private.parent.chmod(0o711)
    guard.private.chmod(0o777)
    direct = run([*as_uid(ALLOWED), "env", f"SSH_AUTH_SOCK={guard.private}", "ssh-add", "-l"])
    assert direct.returncode != 0
    assert guard.client(*agent("ssh-add", "-l")).stdout == b"The agent has no identities.\n"
