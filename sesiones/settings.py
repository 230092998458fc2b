"""Settings: SESIONES_* environment variables, and flags of the same names that win over them."""

import re
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from sesiones.redis_client import connect

SECONDS_MAX = 2**31 - 1


class SettingsError(ValueError):
    """A setting is bad; the message is one clear line that repeats no secret."""


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return int(text)

    return parse


def _timeout(text: str) -> float:
    if not re.fullmatch(r"[0-9]{0,6}\.?[0-9]{1,6}", text) or not 0.001 <= float(text) <= 60:
        raise ValueError("must be a number of seconds from 0.001 to 60")
    return float(text)


def _redis_url(text: str) -> str:
    try:
        connect(text, timeout_seconds=1)
    except Exception:
        # redis-py raises many things. Without the cause: it may repeat a part of the password.
        raise ValueError(
            "is not a valid URL of redis://, rediss://, unix://, redis+sentinel:// or "
            "redis+cluster://"
        ) from None
    return text


def _service_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    if any(not re.fullmatch(r"[!-+\--~]{32,}", key) for key in keys):
        raise ValueError(
            "must be keys of at least 32 printable ASCII characters each, separated by commas"
        )
    return keys


def _key_prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,32}", text):
        raise ValueError("must be 1 to 32 of the characters A-Z a-z 0-9 _ . : -")
    return text


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return text

    return parse


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _setting(default: Any, parse: Callable[[str], Any], description: str) -> Any:
    return field(default=default, metadata={"parse": parse, "description": description})


_METAVARS = {
    "timeout": "SECONDS",
    "workers": "N",
    "user": "N",
    "replicas": "N",
    "uds": "PATH",
    "file": "PATH",
    "key": "KEYS",
    "ips": "ADDRESSES",
    "http": "fast|httptools",
    "log": "0|1",
    "format": "text|json",
}
"""By the last word of a setting's name, where that does not say what the flag takes."""


def _metavar(name: str) -> str:
    word = name.rpartition("_")[2]
    return _METAVARS.get(word, word.upper())


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's settings, one a line: default, how its text is read, what it means.

    ``idle_seconds`` is the variable SESIONES_IDLE_SECONDS and the flag --idle-seconds.
    """

    host: str = _setting("127.0.0.1", _text, "address to listen on")
    port: int = _setting(8000, _integer(0, 65535), "port to listen on; 0 picks a free one")
    uds: str | None = _setting(None, _text, "unix socket to listen on, instead of host and port")
    workers: int = _setting(1, _integer(1, 1024), "server processes")
    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0",
        _redis_url,
        "redis://, rediss://, unix://, redis+sentinel://h:p,h:p/master/db, redis+cluster://h:p,h:p",
    )
    idle_seconds: int = _setting(
        1800, _integer(1, SECONDS_MAX), "seconds that a new session lives unused"
    )
    max_seconds: int = _setting(
        43200, _integer(1, SECONDS_MAX), "seconds that a session lives at the most"
    )
    touch_seconds: int = _setting(
        1, _integer(0, SECONDS_MAX), "precision of Ultima_Actividad in seconds; 0: every check"
    )
    max_per_user: int = _setting(1000, _integer(1, 1_000_000), "sessions that a user may have")
    redis_timeout: float = _setting(
        0.25, _timeout, "seconds for one round trip to Redis before a 503"
    )
    wait_replicas: int = _setting(
        0, _integer(0, 100), "replicas that must have a write within 100 ms, else it is a 503"
    )
    service_key: tuple[str, ...] = _setting(
        (), _service_keys, "keys that POST and PUT require, separated by commas"
    )
    key_prefix: str = _setting("sesiones", _key_prefix, "prefix of every key in Redis")
    http: str = _setting(
        "fast", _choice("fast", "httptools"), "fast answers checks without Starlette, or httptools"
    )
    forwarded_allow_ips: str | None = _setting(
        None, _text, "addresses whose X-Forwarded-* headers are believed; * for all"
    )
    access_log: bool = _setting(False, _switch, "1 logs a line a request")
    log_format: str = _setting(
        "text", _choice("text", "json"), "text for people, or json: an object a line"
    )

    def __post_init__(self) -> None:
        if self.idle_seconds > self.max_seconds:
            raise SettingsError(
                f"SESIONES_IDLE_SECONDS ({self.idle_seconds}) must not be above "
                f"SESIONES_MAX_SECONDS ({self.max_seconds})"
            )

    @classmethod
    def read(cls, environ: Mapping[str, str], flags: Mapping[str, str | None]) -> "Settings":
        """The settings of the environment, with flags (by setting name) over it.

        Raises SettingsError.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            variable = f"SESIONES_{setting.name.upper()}"
            name, text = variable, environ.get(variable)
            if (flag := flags.get(setting.name)) is not None:
                name, text = f"--{setting.name.replace('_', '-')}", flag
            if text is None:
                continue
            try:
                values[setting.name] = setting.metadata["parse"](text)
            except ValueError as error:
                raise SettingsError(f"{name} {error}") from None
        return cls(**values)

    @classmethod
    def check(cls, **values: Any) -> None:
        """Raises SettingsError for values that read() would not give."""
        for name, value in values.items():
            setting = cls.__dataclass_fields__[name]
            kinds = (int, float) if type(setting.default) is float else (type(setting.default),)
            if type(value) not in kinds:
                raise SettingsError(f"{name} must be of type {kinds[-1].__name__}")
            try:
                setting.metadata["parse"](f"{value:f}" if type(value) is float else str(value))
            except ValueError as error:
                raise SettingsError(f"{name} {error}") from None
        cls(**values)

    @classmethod
    def add_flags(cls, parser: ArgumentParser, *names: str) -> None:
        """A flag a setting, whose text read() takes; for those of the names, or for all."""
        for setting in fields(cls):
            if names and setting.name not in names:
                continue
            assert setting.default is not MISSING
            shown = "none" if setting.default in (None, ()) else setting.default
            parser.add_argument(
                f"--{setting.name.replace('_', '-')}",
                metavar=_metavar(setting.name),
                help=f"{setting.metadata['description']} (default: {shown})".replace("%", "%%"),
            )
