"""Logging: one line a record on standard error, and no token in any of them."""

import logging
import re
from typing import Any

from sesiones import health, tokens

_TOKEN = re.compile(r"ses_[A-Za-z0-9_-]{45}")


class Formatter(logging.Formatter):
    """Names tokens by their fingerprints, whoever logged them."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return _TOKEN.sub(lambda match: f"ses_#{tokens.fingerprint(match[0])}", text)


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


def config() -> dict[str, Any]:
    """A configuration for logging.config.dictConfig."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": Formatter,
                "format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
            },
        },
        "filters": {"access": {"()": Access}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "stream": "ext://sys.stderr",
            },
        },
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {"uvicorn.access": {"level": "INFO", "filters": ["access"]}},
    }
