"""The standard streams of the commands.

A character that the locale lacks is printed as its escape. Output that cannot be written is an
error with an exit code of its own, so that exit code 0 means that the output was written.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import TextIO

from sesiones.logs import TEXT_FORMAT, JsonFormatter, TextFormatter


class OutputError(Exception):
    """Standard output cannot be written; the message is the reason."""

    @property
    def reader_left(self) -> bool:
        """Whether the reader of a pipe has closed it, as ``head`` does: that needs no message."""
        return isinstance(self.__cause__, ConnectionError)


def prepare() -> None:
    """Make the standard streams safe to use. Called once, before any other file is opened."""
    # A socket to Redis must not take the number of a standard descriptor that is closed:
    # everything that a library prints would go to Redis.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def read_line() -> str:
    """A line of standard input, without the blanks around it; empty where no text can be read."""
    if sys.stdin is None:  # it is closed
        return ""
    try:
        return sys.stdin.readline().strip()
    except (OSError, ValueError):  # ValueError: bytes that the locale cannot read
        return ""


def show(text: str) -> None:
    """Write lines on standard output. Raises OutputError."""
    if sys.stdout is None:
        raise OutputError("it is closed")
    try:
        print(text, flush=True)
    except OSError as error:
        _discard(sys.stdout)
        raise OutputError(error.strerror or str(error)) from error


def complain(text: str, end: str = "\n") -> None:
    """Write lines on standard error. Lines that cannot be written are dropped and leave the exit
    code as it is."""
    if sys.stderr is None:
        return
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def show_progress(text: str) -> None:
    """Write the text over what this has written before, where standard error is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        complain(f"\r\x1b[K{text}", end="")


class ConsoleHandler(logging.Handler):
    """A handler that writes log records on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(self.format(record))


@contextmanager
def events_logged(log_format: str) -> Iterator[None]:
    """Log ended sessions on standard error, in the service's format. Errors are left out, because
    the command ends with its own line about them, and so are slow operations: only a service must
    be fast."""
    handler = ConsoleHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT))
    handler.addFilter(
        lambda record: record.levelno < logging.ERROR and not hasattr(record, "operation")
    )
    logger = logging.getLogger("sesiones")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def date(moment: int) -> str:
    """A moment in epoch seconds as a date, in UTC."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OSError, OverflowError, ValueError):  # the service writes no such date
        return str(moment)


def counted(count: int, noun: str) -> str:
    """``1 session``, ``2,000 sessions``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _discard(stream: TextIO) -> None:
    """Send what the stream still holds to /dev/null. Otherwise Python would try to write it again
    at exit, fail, and end with exit code 120 instead of the command's own."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
