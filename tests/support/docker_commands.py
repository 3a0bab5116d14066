"""What people do with the docker CLI: each command, and who may do it behind the guard of test_http_docker.py.

As a program it prints the table of one engine: what passed, what was refused, and what the CLI showed.

    python -m tests.support.docker_commands [dockerd|podman]
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support.containers import IMAGE, KINDS, Engine, Kind, docker, engine, image_tar
from tests.support.daemon import Daemon, Event, running
from tests.support.http_services import statuses, talk
from tests.support.identities import open_folder, wait_started, wait_until
from tests.support.servers import private_folder

OPERATOR, CI, READER = 4401, 4402, 4403
"""uids: one who may do everything, one with the preset ci-runner, one who may only look."""
USERS = {"operator": OPERATOR, "ci": CI, "reader": READER}

READER_RULES = """[
  "GET,HEAD /_ping", "GET /version", "GET /info", "GET /events", "GET /system/df",
  "GET /containers/json", "GET /containers/{id}/json", "GET /containers/{id}/logs", "GET /containers/{id}/top",
  "GET /containers/{id}/stats", "GET /containers/{id}/changes",
  "GET /images/json", "GET /images/{name...}/json", "GET /images/{name...}/history",
  "GET /networks", "GET /volumes",
]"""

RULES = f"""
protocol = "http"
[proxy.docker.http]
strip_prefix = "docker-version"
[[proxy.docker.allow]]
name = "operator"
users = [{OPERATOR}]
[[proxy.docker.allow]]
name = "ci"
users = [{CI}]
presets = ["docker:ci-runner"]
[[proxy.docker.allow]]
name = "reader"
users = [{READER}]
http = {READER_RULES}
"""


def archive(**files: str) -> bytes:
    """A tar of these files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return made.getvalue()


@dataclass(frozen=True, slots=True)
class Command:
    """A docker command line.

    may          who may, besides the operator
    before,after run as root past the guard, to lay things ready and to clean up; they may fail
    same         its output is the same each time, but for ids, times, sizes and the order of lines
    alone        an engine does one of them at a time, and refuses others meanwhile
    """

    words: tuple[str, ...]
    may: frozenset[str] = frozenset()
    data: bytes = b""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    same: bool = True
    alone: bool = False

    @property
    def name(self) -> str:
        return " ".join(self.words)


def split(line: str) -> list[str]:
    """The words of a line; a no-break space stands for a space within one."""
    return [word.replace("\xa0", " ") for word in line.split(" ")]


_READ = frozenset({"reader"})
_CI = frozenset({"ci"})
_BOTH = _READ | _CI
_RUN = ("run", "--rm", "--network", "none")
_MADE = ("create", "--name", "made", "--network", "none", IMAGE, "sleep", "1000")
_RM = "rm --force made"
_DOCKERFILE = archive(Dockerfile=f"FROM {IMAGE}\nCOPY Dockerfile /copied\nCMD cat /copied\n")


def _c(line: str, may: frozenset[str] = frozenset(), data: bytes = b"", *, before: str = "", after: str = "",
       same: bool = True, alone: bool = False) -> Command:  # fmt: skip
    return Command(tuple(split(line)), may, data, tuple(filter(None, before.split("; "))),
                   tuple(filter(None, after.split("; "))), same, alone)  # fmt: skip


_MAKE = " ".join(_MADE)
_START = f"{_MAKE}; start made"
COMMANDS: tuple[Command, ...] = (
    # looking
    _c("version", _BOTH),
    _c("info", _BOTH, same=False),
    _c("ps --all", _BOTH),
    _c("images", _BOTH),
    _c("inspect web", _BOTH),
    _c(f"image inspect {IMAGE}", _BOTH),
    _c(f"history {IMAGE}", _READ),
    _c("logs web", _BOTH),
    _c("logs --follow old", _BOTH),
    _c("top web", _BOTH, same=False),
    _c("stats --no-stream web", _BOTH, same=False),
    _c("diff old", _READ),
    _c("events --since 0 --until 1", _READ),
    _c("network ls", _BOTH),
    _c("volume ls", _READ),
    _c("system df", _READ, alone=True),
    _c("secret ls", same=False),
    # containers
    _c("run --rm --network none bb:1 echo hello", _CI),
    _c("run --rm --interactive --network none bb:1 cat", _CI, b"through standard input\n" * 1000),
    _c("run --detach --name made --network none bb:1 true", _CI, after=_RM),
    _c("run --rm --network none --privileged bb:1 true"),
    _c("run --rm --network none --volume /:/host bb:1 true"),
    _c("run --rm --network none --cap-add SYS_ADMIN bb:1 true"),
    _c("run --rm --network none --pid host bb:1 true"),
    _c("create --name made --network none --log-driver passthrough bb:1 true", after=_RM),
    _c(_MAKE, _CI, after=_RM),
    _c("start made", _CI, before=_MAKE, after=_RM),
    _c("stop --time 0 made", _CI, before=_START, after=_RM),
    _c("kill made", _CI, before=_START, after=_RM),
    _c("restart --time 0 made", before=_START, after=_RM),
    _c("pause made", before=_START, after=_RM),
    _c("rename made other", before=_MAKE, after="rm --force made; rm --force other"),
    _c("wait old", _CI),
    _c("rm --force made", _CI, before=_MAKE, after=_RM),
    _c("container prune --force --filter label=no.such", alone=True),
    # processes in them
    _c("exec web id", _CI),
    _c("exec --interactive web cat", _CI, b"through standard input\n" * 1000),
    _c("exec --interactive web sh -c cat\xa0>/dev/null;sleep\xa00.3;echo\xa0after\xa0the\xa0end", _CI, b"ends\n"),
    _c("exec web false", _CI),
    _c("exec --privileged web true"),
    _c("attach made", _CI, b"typed\n", after=_RM, same=False,  # dockerd 20.10 itself may lose the output
       before="run --detach --interactive --name made --network none bb:1 "
              "sh -c read\xa0line;echo\xa0got\xa0$line;sleep\xa00.2"),
    # files
    _c("cp web:/etc/hostname -", same=False),
    _c("cp - web:/tmp", data=archive(copied="text\n")),
    _c("export old", same=False),
    # images
    _c("build --tag built -", data=_DOCKERFILE, after="rmi --force built", same=False),
    _c("import - imported:1", data=image_tar(), after="rmi --force imported:1"),
    _c(f"tag {IMAGE} tagged:1", after="rmi --force tagged:1"),
    _c("rmi tagged:1", before=f"tag {IMAGE} tagged:1", after="rmi --force tagged:1"),
    _c(f"save {IMAGE}", same=False),
    _c("commit old committed:1", after="rmi --force committed:1"),
    _c("volume create made", after="volume rm --force made"),
)  # fmt: skip


def prepare(engine: Engine) -> None:
    """What the commands work on: a container that runs, and one that has ended."""
    engine.docker("run", "--detach", "--name", "web", "--hostname", "web", "--network", "none", IMAGE,
                  "sh", "-c", "echo out; echo err >&2; exec sleep 100000")  # fmt: skip
    engine.docker("run", "--name", "old", "--network", "none", IMAGE, "sh", "-c", "echo done; touch /tmp/changed")


@dataclass(frozen=True, slots=True)
class Result:
    """What a command gave; all text with ids, times, sizes and the socket's path taken out."""

    status: int
    output: bytes
    errors: bytes

    @property
    def shown(self) -> str:
        """What a person sees of a failure: the guard's own words where the CLI shows them, else its last line."""
        lines = [line for line in self.errors.decode(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("Run 'docker")] or [""]
        return next((line for line in lines if "sockguard" in line), lines[-1])


_VARYING: Sequence[tuple[re.Pattern[bytes], bytes]] = [
    (re.compile(rb"\b[0-9a-f]{64}\b"), b"ID"),
    (re.compile(rb"\b[0-9a-f]{12}\b"), b"ID"),
    (re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)"), b"TIME"),
    (re.compile(rb"(Up |Exited \(\d+\) )?(Less than a second|About a minute|\d+ (seconds?|minutes?))( ago)?"), b"AGE"),
    (re.compile(rb"\b\d\d:\d\d(:\d\d)?\b"), b"CLOCK"),
    (re.compile(rb"\b[0-9.]+ ?[kMG]?B\b"), b"SIZE"),
    (re.compile(rb" +"), b" "),
]


def run(engine: Engine, command: Command, *whom: tuple[Path, int | None]) -> list[Result]:
    """Run it on each of these sockets as that user, at the same time, between what goes before and after."""
    for line in command.before:
        _docker(engine.socket, split(line))
    try:
        with ThreadPoolExecutor(len(whom)) as pool:
            results = list(pool.map(lambda one: _run(command, *one), whom))
    finally:
        for line in command.after:
            docker(engine.socket, *split(line))
    return results


def _docker(
    path: Path, words: Sequence[str], uid: int | None = None, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run the CLI; again while podman 4.3 keeps the name of a container that has gone."""
    for _ in range(20):
        done = docker(path, *words, uid=uid, data=data)
        if b"that name is already in use" not in done.stderr:
            break
        time.sleep(0.5)
    return done


def _run(command: Command, path: Path, uid: int | None) -> Result:
    done = _docker(path, command.words, uid, command.data)
    output, errors = (text.replace(str(path).encode(), b"PATH") for text in (done.stdout, done.stderr))
    for pattern, instead in _VARYING:
        output, errors = pattern.sub(instead, output), pattern.sub(instead, errors)
    return Result(done.returncode, b"\n".join(sorted(output.split(b"\n"))), errors)


@dataclass(frozen=True, slots=True)
class Guarded:
    """An engine behind the guard. ``public``: the socket of its users."""

    engine: Engine
    public: Path
    daemon: Daemon

    def denials(self) -> dict[int, list[str]]:
        """The requests that were denied so far, by user. The one relay tells of a denial of root behind all others."""
        lines, since = self.daemon.lines, len(self.daemon.lines)
        assert statuses(talk(self.public, b"GET /settled HTTP/1.1\r\nHost: x\r\n\r\n")) == [403]
        wait_until(lambda: any(event["uid"] == 0 for event in _denials(lines[since:])), "the last denial is told")
        found: dict[int, list[str]] = defaultdict(list)
        for event in _denials(lines):
            found[event["uid"]].append(event["request"])
        return found

    def run(self, command: Command) -> tuple[Result, dict[str, tuple[Result, list[str]]]]:
        """What root gets without the guard; and what each user gets, with the requests that were denied to him."""
        before = self.denials()
        direct, users = (self.engine.socket, None), {user: (self.public, uid) for user, uid in USERS.items()}
        refused = [user for user in users if user != "operator" and user not in command.may]
        # Who may changes what others would find, but for those who only look; a refused one changes nothing.
        groups = [[user] for user in ("", *users) if user not in refused] + [refused] * bool(refused)
        if not (command.before or command.after or command.alone):
            groups = [["", *users]]
        results: dict[str, Result] = {}
        for group in groups:
            done = run(self.engine, command, *(users.get(user, direct) for user in group))
            results.update(zip(group, done, strict=True))
        denied = self.denials()
        told = {user: denied[uid][len(before[uid]) :] for user, uid in USERS.items()}
        return results.pop(""), {user: (result, told[user]) for user, result in results.items()}


def _denials(lines: Sequence[bytes]) -> Iterator[Event]:
    return (json.loads(line) for line in lines if b'"request_denied"' in line)


@contextlib.contextmanager
def guarded_engine(kind: Kind, rules: str = RULES) -> Iterator[Guarded]:
    """That engine with what ``prepare`` makes, and sockguard before it with those rules for [proxy.docker]."""
    with open_folder() as folder:
        private, public = private_folder(folder, 0) / "docker.sock", folder / "public" / "docker.sock"
        public.parent.mkdir()
        file = folder / "sockguard.toml"
        file.write_text(
            f'[daemon]\nrelays = 1\n[proxy.docker]\nlisten = "{public}"\nbackend = "{private}"\n{rules}'
            '[[proxy.docker.allow]]\nusers = [0]\nhttp = ["GET /_ping"]\n'
        )
        with engine(kind, private) as made, running(file, public) as daemon:
            prepare(made)
            wait_started(daemon)
            yield Guarded(made, public, daemon)


def table(guarded: Guarded) -> Iterator[list[str]]:
    """A row a command: the command, and for each user whether it passed; of a refusal what the CLI showed."""
    for command in COMMANDS:
        row = [f"`{command.name}`".replace("\xa0", " ")]
        _, users = guarded.run(command)
        for user in USERS:
            done, denied = users[user]
            row.append(done.shown if denied else "passed" if done.status == 0 else f"passed, status {done.status}")
        yield row


def main() -> None:
    kind = next((kind for kind in KINDS if kind in sys.argv), KINDS[0])
    with guarded_engine(kind) as guarded:
        for row in ([kind, *USERS], ["---"] * (len(USERS) + 1), *table(guarded)):
            sys.stdout.write("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")


if __name__ == "__main__":
    main()
