"""A listing that is drawn again each second: on a terminal in its alternate screen, else one listing after another.

The terminal is as it was afterwards, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

from sockguard.commands.status_view import cut
from sockguard.errors import EXIT_OK, SockguardError

SECONDS: Final = 1.0

_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # alternate screen, no cursor (xterm control sequences)
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"

Draw = Callable[[int], str]
"""The listing for a terminal that wide (0: as wide as it takes). Raises SockguardError when there is none."""


def watch(draw: Draw) -> int:
    """Until q or Ctrl-C. Off a terminal the first error ends it; on one it is shown until the daemon is back."""
    try:
        if not sys.stdout.isatty():
            _print_for_ever(draw)
        with _screen():
            _show_until_told(draw)
    except KeyboardInterrupt:
        pass
    return EXIT_OK


def _print_for_ever(draw: Draw) -> NoReturn:
    while True:
        print(draw(0), flush=True)
        time.sleep(SECONDS)


def _show_until_told(draw: Draw) -> None:
    while True:
        width, height = shutil.get_terminal_size()
        try:
            text = draw(width)
        except SockguardError as error:
            text = f"sockguard: {error}\n"
        _write(frame(text, width, height))
        if _told_to_end(SECONDS):
            return


def frame(text: str, width: int, height: int) -> str:
    """The text as it is written over the frame before: as many lines as there is room for, and one for the keys."""
    lines = text.splitlines()[: max(height - 1, 0)]
    keys = cut("q or Ctrl-C: end", width)
    return _HOME + "".join(f"{cut(line, width)}{_CLEAR_LINE}\r\n" for line in lines) + keys + _CLEAR_LINE + _CLEAR_BELOW


def _told_to_end(seconds: float) -> bool:
    """Wait so long for a q; an end of input is one too."""
    end = time.monotonic() + seconds
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            typed = os.read(sys.stdin.fileno(), 64)
            if not typed or b"q" in typed.lower():
                return True
    return False


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    before = None
    was = signal.signal(signal.SIGTERM, _end)
    try:
        if sys.stdin.isatty():
            before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        _write(_ENTER)
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):  # the terminal may have gone
            _write(_LEAVE)
        if before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, was)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
