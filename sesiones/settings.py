"""Settings: SESIONES_* environment variables, and flags of the same names that override them.

A secret may come from a file instead, as SESIONES_SERVICE_KEY_FILE names one.
"""

import difflib
import ipaddress
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal

from sesiones import redis_url
from sesiones.policy import SessionPolicy

SECONDS_MAX = 2**31 - 1
MAX_PER_USER_MAX = 10_000
"""Scripts over larger indexes would stop Redis for too long."""
CACHE_SECONDS_MAX = 3600
WHY_SECONDS_MAX = 30 * 24 * 3600
SERVICE_KEY = r"[!-+\--~]{32,}"
"""The pattern of one service key: no comma, which separates keys."""
FILE_MAX_BYTES = 64 * 1024


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
        redis_url.parse(text)
    except ValueError:
        # The cause is left out, because it may repeat a part of the password.
        raise ValueError(
            "is not a valid URL of redis://, unix://, redis+sentinel:// or redis+cluster://, with "
            "TLS rediss://, rediss+sentinel:// or rediss+cluster://"
        ) from None
    return text


def _service_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    if any(not re.fullmatch(SERVICE_KEY, key) for key in keys):
        raise ValueError(
            "must be keys of at least 32 printable ASCII characters each, separated by commas"
        )
    return keys


def _key_prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,32}", text):
        raise ValueError("must be 1 to 32 of the characters A-Z a-z 0-9 _ . : -")
    return text


def _forwarders(text: str) -> str:
    """Accept what uvicorn understands. It would take other text for a name, and trust no client."""
    items = [item.strip() for item in text.split(",")]
    if items == ["*"]:
        return "*"
    try:
        for item in items:
            ipaddress.ip_network(item)  # an address counts as a network
    except ValueError:
        raise ValueError(
            "must be IP addresses and networks (such as 10.0.0.0/8) separated by commas, or *"
        ) from None
    return ",".join(items)


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _ca_file(text: str) -> str:
    """The path of a file with certificates."""
    import ssl  # slow, and seldom needed

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=text)
    except ssl.SSLError:
        raise ValueError("names a file without a certificate in PEM") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
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


def _setting(
    default: Any, parse: Callable[[str], Any], description: str, *, secret: bool = False
) -> Any:
    """A setting of Settings. A ``secret`` may come from a file."""
    metadata = {"parse": parse, "description": description, "secret": secret}
    return field(default=default, metadata=metadata)


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
    "level": "info|debug",
    "format": "text|json",
    "limit": "end|refuse",
}
"""What a flag takes, by the last word of its name, where that word does not say it."""


def _metavar(name: str) -> str:
    word = name.rpartition("_")[2]
    return _METAVARS.get(word, word.upper())


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's settings. Each has a default, a parser of its text and a description.

    ``idle_seconds`` is the variable SESIONES_IDLE_SECONDS and the flag --idle-seconds.
    """

    host: str = _setting("127.0.0.1", _text, "address to listen on")
    port: int = _setting(8000, _integer(0, 65535), "port to listen on; 0 picks a free one")
    uds: str | None = _setting(None, _text, "unix socket to listen on, instead of host and port")
    workers: int = _setting(1, _integer(1, 1024), "server processes")
    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0",
        _redis_url,
        "redis://h:p/db, unix://, redis+sentinel://h:p,h:p/master/db, redis+cluster://h:p,h:p; "
        "with TLS rediss://, rediss+sentinel://, rediss+cluster://",
        secret=True,
    )
    idle_seconds: int = _setting(
        SessionPolicy.idle_seconds,
        _integer(1, SECONDS_MAX),
        "seconds that a new session lives unused",
    )
    max_seconds: int = _setting(
        SessionPolicy.max_seconds,
        _integer(1, SECONDS_MAX),
        "seconds that a session lives at the most",
    )
    touch_seconds: int = _setting(
        SessionPolicy.touch_seconds,
        _integer(0, SECONDS_MAX),
        "precision of Ultima_Actividad in seconds; 0: every check",
    )
    max_per_user: int = _setting(
        SessionPolicy.max_per_user,
        _integer(1, MAX_PER_USER_MAX),
        "sessions that a user may have",
    )
    at_limit: Literal["end", "refuse"] = _setting(
        SessionPolicy.at_limit,
        _choice("end", "refuse"),
        "end ends the sessions that expire first for a new one, or refuse",
    )
    redis_timeout: float = _setting(
        0.25, _timeout, "seconds for one round trip to Redis before a 503"
    )
    redis_ca_file: str | None = _setting(
        None,
        _ca_file,
        "certificates of authorities that TLS to Redis trusts beside the system's, in PEM",
    )
    wait_replicas: int = _setting(
        0, _integer(0, 100), "replicas that must have a write within 100 ms, else it is a 503"
    )
    cache_seconds: int = _setting(
        0,
        _integer(0, CACHE_SECONDS_MAX),
        "seconds for which a check may be answered from memory; 0: every check asks Redis",
    )
    why_seconds: int = _setting(
        0,
        _integer(0, WHY_SECONDS_MAX),
        "seconds for which `sesiones why` can tell of a session that is gone; 0: not at all",
    )
    service_key: tuple[str, ...] = _setting(
        (), _service_keys, "keys that POST and PUT require, separated by commas", secret=True
    )
    key_prefix: str = _setting("sesiones", _key_prefix, "prefix of every key in Redis")
    http: str = _setting(
        "fast", _choice("fast", "httptools"), "fast answers checks without Starlette, or httptools"
    )
    forwarded_allow_ips: str | None = _setting(
        None,
        _forwarders,
        "addresses and networks whose X-Forwarded-* headers are believed; * for all",
    )
    access_log: bool = _setting(False, _switch, "1 logs a line a request")
    log_level: Literal["info", "debug"] = _setting(
        "info", _choice("info", "debug"), "info, or debug: a line for each token that is refused"
    )
    log_format: str = _setting(
        "text", _choice("text", "json"), "text for people, or json: an object a line"
    )

    def __post_init__(self) -> None:
        if self.idle_seconds > self.max_seconds:
            raise SettingsError(
                f"SESIONES_IDLE_SECONDS ({self.idle_seconds}) must not be above "
                f"SESIONES_MAX_SECONDS ({self.max_seconds})"
            )
        if self.redis_ca_file is not None and not redis_url.parse(self.redis_url).uses_tls:
            raise SettingsError(
                "SESIONES_REDIS_CA_FILE needs a SESIONES_REDIS_URL of rediss://, "
                "rediss+sentinel:// or rediss+cluster://"
            )

    @property
    def policy(self) -> SessionPolicy:
        return SessionPolicy(
            idle_seconds=self.idle_seconds,
            max_seconds=self.max_seconds,
            touch_seconds=self.touch_seconds,
            max_per_user=self.max_per_user,
            at_limit=self.at_limit,
        )

    @classmethod
    def read(cls, environ: Mapping[str, str], flags: Mapping[str, str | None]) -> "Settings":
        """The settings of the environment, with flags (by setting name) over it.

        Raises SettingsError.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            parse = setting.metadata["parse"]
            given = _given(setting, flags.get, _flag) or _given(
                setting, lambda name: environ.get(_variable(name)), _variable
            )
            if given is None:
                continue
            name, text = given
            try:
                values[setting.name] = parse(text)
            except ValueError as error:
                raise SettingsError(f"{name} {error}") from None
        return cls(**values)

    @classmethod
    def check(cls, **values: Any) -> None:
        """Raise SettingsError for values that read() would refuse."""
        for name, value in values.items():
            setting = cls.__dataclass_fields__[name]
            if value is None and setting.default is None:
                continue
            kind = str if setting.default is None else type(setting.default)
            kinds = (int, float) if kind is float else (kind,)
            if type(value) not in kinds:
                raise SettingsError(f"{name} must be of type {kinds[-1].__name__}")
            try:
                setting.metadata["parse"](f"{value:f}" if type(value) is float else str(value))
            except ValueError as error:
                raise SettingsError(f"{name} {error}") from None
        cls(**values)

    @classmethod
    def add_flags(cls, parser: ArgumentParser, *names: str) -> None:
        """Add a flag for each of the named settings, or for all. read() takes their text."""
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
            if setting.metadata["secret"]:
                parser.add_argument(
                    _flag(f"{setting.name}_file"),
                    metavar="FILE",
                    help=f"file with the value of {_flag(setting.name)}",
                )

    def changed(self) -> Iterator[tuple[str, str]]:
        """The variables and values that differ from the defaults; secrets are hidden."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value != setting.default:
                if setting.name == "redis_url":
                    value = redis_url.parse(value).public
                elif setting.metadata["secret"]:
                    value = "(hidden)"
                elif isinstance(value, bool):
                    value = int(value)
                yield _variable(setting.name), str(value)


def warnings(
    settings: Settings, environ: Mapping[str, str], arguments: Sequence[str]
) -> Iterator[str]:
    """One line for each valid setting that is probably a mistake. ``arguments`` are sys.argv."""
    names = variables()
    for name in environ:
        if name.upper().startswith("SESIONES_") and name not in names:
            nearest = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0)[0]
            yield f"{name} is no setting and is ignored; the nearest one is {nearest}"
    secrets = {"redis_url": redis_url.parse(settings.redis_url).has_password, "service_key": True}
    given = {argument.partition("=")[0] for argument in arguments}
    for name, is_secret in secrets.items():
        if is_secret and _flag(name) in given:
            yield (
                f"{_flag(name)} shows a secret to every user of this machine: use "
                f"{_variable(name)} or {_variable(f'{name}_file')}"
            )
    if settings.uds is not None and settings.forwarded_allow_ips not in (None, "*"):
        yield (
            "SESIONES_FORWARDED_ALLOW_IPS is of no use with SESIONES_UDS: clients of a unix "
            "socket have no address, and only * includes them"
        )


def variables() -> list[str]:
    """Every environment variable that read() looks at."""
    secrets = [setting.name for setting in fields(Settings) if setting.metadata["secret"]]
    names = [*(setting.name for setting in fields(Settings)), *(f"{s}_file" for s in secrets)]
    return [_variable(name) for name in names]


def _variable(name: str) -> str:
    return f"SESIONES_{name.upper()}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(
    setting: Field[Any], text_of: Callable[[str], str | None], spelled: Callable[[str], str]
) -> tuple[str, str] | None:
    """The name of the variable or flag that gives the setting a value, and the text, perhaps from
    a file. None when there is neither. Raises SettingsError."""
    name, file_name = setting.name, f"{setting.name}_file"
    text = text_of(name)
    path = text_of(file_name) if setting.metadata["secret"] else None
    if path is None:
        return None if text is None else (spelled(name), text)
    if text is not None:
        raise SettingsError(f"{spelled(name)} and {spelled(file_name)} exclude each other")
    return spelled(file_name), _read_file(spelled(file_name), path)


def _read_file(name: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:  # bytes that are not UTF-8, or a path with a null character
        raise SettingsError(f"{name} cannot be read: it is no text file") from None
    if not text or len(content) > FILE_MAX_BYTES:
        raise SettingsError(f"{name} names a file that is {'too long' if text else 'empty'}")
    return text
