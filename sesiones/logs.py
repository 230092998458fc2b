"""Logging: one line a record on standard error, and no token in any of them.

What a client sends cannot break a line or begin one: control characters are escaped, and in text
the lines of a traceback are indented.
"""

import logging
import re
from datetime import UTC, datetime
from typing import Any

import orjson

from sesiones import health, tokens

_TOKEN = re.compile(r"ses_[A-Za-z0-9_-]{45}")
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message", "taskName"}
"""What a record has by itself; the rest was given as `extra`."""


def _named(text: str) -> str:
    """Tokens by their fingerprints, whoever logged them."""
    return _TOKEN.sub(lambda match: f"ses_#{tokens.fingerprint(match[0])}", text)


def escaped(text: str) -> str:
    """Without what could break a line or drive a terminal."""
    return _BREAKS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """For people."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        return escaped(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        first, *traceback = super().format(record).split("\n")
        return _named("\n".join([first, *(f"    {escaped(line)}" for line in traceback)]))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what the record says in `extra`, and
    the traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                members[name] = value if isinstance(value, int | float | None) else str(value)
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        for name, value in members.items():
            if isinstance(value, str):  # orjson takes no surrogates
                members[name] = _named(value.encode("utf-8", "backslashreplace").decode())
        # What orjson leaves as it is, and some readers take for the end of a line.
        text = orjson.dumps(members).decode()
        return _BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class Access(logging.Filter):
    """Takes the query off uvicorn's access records, as DELETE may carry a token there, and drops
    those of health probes."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, target, *rest = record.args
            path = str(target).partition("?")[0]
            record.args = (client, method, path, *rest)
            return path not in health.PATHS
        return True


def config(log_format: str) -> dict[str, Any]:
    """A configuration for logging.config.dictConfig; the format is text or json."""
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
        "filters": {"access": {"()": Access}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": log_format,
                "stream": "ext://sys.stderr",
            },
        },
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {"uvicorn.access": {"level": "INFO", "filters": ["access"]}},
    }
