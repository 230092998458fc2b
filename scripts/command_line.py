"""What the scripts' command lines have in common."""

import argparse
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from sesiones.cli.exits import Exit


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what ``main`` returns. A signal that ends the script also ends what it started."""
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return int(text)


def show(text: str) -> None:
    """What is being done, in the terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
