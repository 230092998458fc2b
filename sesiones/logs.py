"""Logging: one line for each record on standard error, and no token in any line.

Text from a client can neither break a line nor begin one: control characters are escaped, and in
the text format the lines of a traceback are indented. A slow reader of standard error cannot stop
the service: a line that cannot be written at once waits in a backlog, and while that is full, lines
are dropped and counted.
"""

import logging
import logging.config
import os
import re
import socket
import stat
import sys
import threading
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

import orjson

from sesiones import tokens

logger = logging.getLogger(__name__)

BACKLOG_MAX_BYTES = 4 * 1024 * 1024
RETRY_SECONDS = 1.0
"""The pause before a failed write is tried again: the disk may be full."""
FLUSH_SECONDS = 0.5
"""How long the end of the process waits until the backlog is written."""

_TOKEN = re.compile(tokens.PATTERN)
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_STANDARD_ATTRIBUTES = {
    *vars(logging.makeLogRecord({})),
    "message",
    "asctime",
    "color_message",
    "taskName",
}
"""The attributes of every log record. Any others were given as `extra`."""


def _mask_tokens(text: str) -> str:
    """The text with fingerprints in place of tokens."""
    return _TOKEN.sub(lambda match: f"ses_#{tokens.fingerprint(match[0])}", text)


def escaped(text: str) -> str:
    """The text with escapes in place of the characters that break a line or control a terminal."""
    return _BREAKS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """The text format: a line for each record, and indented lines for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        return escaped(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        first, *traceback = super().format(record).split("\n")
        return _mask_tokens("\n".join([first, *(f"    {escaped(line)}" for line in traceback)]))


class JsonFormatter(logging.Formatter):
    """The JSON format: an object on one line with time, level, logger, message, the members of
    `extra`, and the traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD_ATTRIBUTES:
                members[name] = value if isinstance(value, int | float | None) else str(value)
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        for name, value in members.items():
            if isinstance(value, str):  # orjson takes no surrogates
                members[name] = _mask_tokens(value.encode("utf-8", "backslashreplace").decode())
        # orjson does not escape these characters, which some readers take for the end of a line.
        text = orjson.dumps(members).decode()
        return _BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class StderrHandler(logging.Handler):
    """Writes to standard error and never waits for it.

    Usually the thread that logs a record writes its line. A line that would have to wait goes to
    the backlog, and a thread of the handler's own writes until the backlog is empty.
    """

    def __init__(
        self, stream: TextIO | None = None, backlog_max_bytes: int = BACKLOG_MAX_BYTES
    ) -> None:
        super().__init__()
        stream = stream or sys.stderr  # None if it was closed before the process started
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._backlog_max_bytes = backlog_max_bytes
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._dropped = 0
        self._is_failing = False
        # Reentrant: the garbage collector may run in emit(), and what it destroys may log.
        self._lock = threading.RLock()
        self._draining = threading.Lock()
        """Held while a thread writes the backlog."""
        self._write: Callable[[bytes], int] = len  # discards everything
        self._write_now: Callable[[bytes], int] = len
        self._release: Callable[[], None] = lambda: None
        if stream is not None:
            try:
                descriptor = stream.fileno()
            except (OSError, ValueError, AttributeError):  # a stream without a file, as in tests
                self._write = self._write_now = lambda data: _write_text(stream, data)
            else:
                self._write = partial(os.write, descriptor)
                self._write_now, self._release = _nonblocking(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        line = self._line(record)
        with self._lock:
            if not self._backlog:
                with suppress(OSError):  # the thread meets the same error
                    line = line[self._write_now(line) :]
                if not line:
                    return
            self._add_to_backlog(line)
            if self._draining.acquire(blocking=False):
                try:
                    # Not threading.Thread, whose start() waits until the thread runs: in the new
                    # thread the garbage collector may run first, and log, and wait for this one.
                    start_new_thread(self._drain, ())
                except RuntimeError:  # no more threads: the next record tries again
                    self._draining.release()

    def flush(self) -> None:
        """Wait FLUSH_SECONDS at the most until the backlog is written."""
        if not self._is_failing and self._draining.acquire(timeout=FLUSH_SECONDS):
            self._draining.release()

    def close(self) -> None:
        self._release()
        self._release = lambda: None
        self._write = self._write_now = len  # the descriptor may soon be another file's
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as error:
            # logging.Handler.handleError() would write to standard error, and wait.
            text = f"a record of {record.name} has no text: {type(error).__name__}"
        return f"{text}\n".encode(self._encoding, "backslashreplace")

    def _add_to_backlog(self, line: bytes) -> None:
        if self._backlog and self._backlog_bytes + len(line) > self._backlog_max_bytes:
            self._dropped += 1
            return
        if self._dropped:
            line = self._dropped_line() + line
        self._backlog.append(line)
        self._backlog_bytes += len(line)

    def _dropped_line(self) -> bytes:
        """The line that reports how many lines were dropped."""
        record = logging.makeLogRecord(
            {
                "name": logger.name,
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": "%d log lines were dropped: standard error could not be written",
                "args": (self._dropped,),
            }
        )
        self._dropped = 0
        return self._line(record)

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._backlog and self._dropped:
                    self._backlog.append(self._dropped_line())
                    self._backlog_bytes += len(self._backlog[0])
                if not self._backlog:
                    self._draining.release()
                    return
                line = self._backlog[0]
            written = 0
            try:
                while written < len(line):
                    written += self._write(line[written:])
                self._is_failing = False
            except OSError:
                self._is_failing = True
                time.sleep(RETRY_SECONDS)
            with self._lock:
                if written < len(line):
                    self._backlog[0] = line[written:]
                else:
                    self._backlog.popleft()
                self._backlog_bytes -= written


def _nonblocking(descriptor: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """A function that writes to the descriptor's file and never waits: it raises OSError, or writes
    less than was given. And a function that closes what the first one opened.

    O_NONBLOCK on the descriptor itself would apply to every process that shares it, such as the
    shell.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return partial(os.write, descriptor), lambda: None
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(descriptor))
        return lambda data: connection.send(data, socket.MSG_DONTWAIT), connection.close
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # another user's file, or no /proc: every line goes through the backlog
        return lambda data: 0, lambda: None
    return partial(os.write, own), partial(os.close, own)


def _write_text(stream: TextIO, data: bytes) -> int:
    stream.write(data.decode(stream.encoding or "utf-8"))
    stream.flush()
    return len(data)


def set_up(log_format: str, log_level: str = "info") -> None:
    """Log on standard error. Log Python's own warnings and unraisable exceptions too, because
    Python would write them itself, and wait."""
    logging.config.dictConfig(config(log_format, log_level))
    logging.captureWarnings(True)
    sys.unraisablehook = _log_unraisable


def _log_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    text = raised.err_msg or "Exception ignored in"
    logger.error("%s: %r", text, raised.object, exc_info=raised.exc_value)


def config(log_format: str, log_level: str = "info") -> dict[str, Any]:
    """A configuration for logging.config.dictConfig. The format is text or json. The level is that
    of the package; libraries log from INFO on."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {
                "()": TextFormatter,
                "format": TEXT_FORMAT,
            },
            "json": {"()": JsonFormatter},
        },
        "handlers": {
            "stderr": {
                "()": StderrHandler,
                "formatter": log_format,
            },
        },
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {"sesiones": {"level": log_level.upper()}},
    }
