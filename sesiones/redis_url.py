"""The URLs of Redis, Sentinel and Cluster: parsed and checked. No connection is made."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Address = tuple[str, int]

_HOST = re.compile(r"[^\s,/?#@\[\]\x00-\x20\x7f]+")
_DATABASE = re.compile(r"[0-9]{1,9}")
_OPTION = re.compile(r"db|username|password|ssl_(?!cert_reqs|check_hostname|min_version)\w+")
"""redis-py's options that the URL of a single server may have: those that say where the server is
and who asks. How to ask is the service's own choice."""


@dataclass(frozen=True)
class RedisUrl:
    """The parts of a URL, as parse() has read them."""

    scheme: str
    location: str
    """Where the server is, without credentials and options: hosts and a master or a database, or
    the path of a socket."""
    addresses: tuple[Address, ...] = ()
    """Of the Sentinels, or of nodes of the Cluster. redis-py reads that of a single server."""
    master: str = ""
    """The name that the Sentinels know the master by."""
    database: int = 0
    credentials: Mapping[str, str] = field(default_factory=dict)
    """redis-py's options username and password, for the servers that hold the sessions."""
    sentinel_credentials: Mapping[str, str] = field(default_factory=dict)
    """The same, for the Sentinels."""

    @property
    def is_sentinel(self) -> bool:
        return self.scheme.endswith("+sentinel")

    @property
    def is_cluster(self) -> bool:
        return self.scheme.endswith("+cluster")

    @property
    def uses_tls(self) -> bool:
        return self.scheme.startswith("rediss")

    @property
    def public(self) -> str:
        """The URL without user, password and options."""
        return f"{self.scheme}://{self.location}"

    @property
    def has_password(self) -> bool:
        return "password" in self.credentials or "password" in self.sentinel_credentials


def parse(url: str) -> RedisUrl:
    """Read a URL of one server, of Sentinels or of a Cluster. Raises ValueError for a URL of which
    no connection could be made."""
    if "#" in url:
        raise ValueError('a "#" in a password is written %23')
    if re.search(r"[\x00-\x1f\x7f]", url):  # urlsplit() drops some of them
        raise ValueError("a control character")
    parts = urlsplit(url)
    parsers = {"+cluster": _parse_cluster, "+sentinel": _parse_sentinel}
    kind = re.fullmatch(r"rediss?(\+cluster|\+sentinel)", parts.scheme)
    return parsers[kind[1]](parts) if kind else _parse_single(parts)


def _parse_single(parts: SplitResult) -> RedisUrl:
    """Refuses mistakes that redis-py accepts: an unescaped password whose first half it takes for a
    host, a database that is not a number, a list of hosts, options that break every connection."""
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if not _OPTION.fullmatch(name):
            raise ValueError(f"the option {name} is not known")
        if name == "db" and not _DATABASE.fullmatch(value):
            raise ValueError("the database is not a number")
        options.setdefault(name, value)  # as redis-py, which takes the first one
    database = ""
    if parts.scheme == "unix":
        if _hosts(parts) or not parts.path.startswith("/"):
            raise ValueError("unix:///path/of/the/socket has three slashes")
    elif parts.scheme in ("redis", "rediss"):
        path = re.fullmatch(r"/?|/([0-9]{1,9})", parts.path)
        if not parts.hostname or " " in parts.netloc or not path:
            raise ValueError(
                "redis://user:password@host:port/database, the password percent-encoded"
            )
        database = path[1] or ""
        _address(_hosts(parts))
    else:
        raise ValueError("an unknown scheme")
    credentials = {
        name: given
        for name in ("username", "password")
        if (given := unquote(getattr(parts, name) or "") or options.get(name))
    }
    return RedisUrl(
        parts.scheme,
        _hosts(parts) + parts.path,
        database=int(options.get("db") or database or 0),
        credentials=credentials,
    )


def _parse_sentinel(parts: SplitResult) -> RedisUrl:
    """``redis+sentinel://[user:password@]host:port,.../master[/database]``, with
    ``?sentinel_username=&sentinel_password=`` where the Sentinels ask for a password. With
    ``rediss``, TLS is for the Sentinels and the master."""
    master, _, database = parts.path.removeprefix("/").partition("/")
    if not re.fullmatch(r"[!-?A-~]+", master):  # with a "@" it is the rest of a password
        raise ValueError("the name of the master is missing: redis+sentinel://host:port/master")
    if database and not _DATABASE.fullmatch(database):
        raise ValueError("the database is not a number")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    sentinel_credentials = {
        option.removeprefix("sentinel_"): options.pop(option)
        for option in ("sentinel_username", "sentinel_password")
        if option in options
    }
    if options:
        raise ValueError(f"the option {next(iter(options))} is not known")
    if "username" in sentinel_credentials and "password" not in sentinel_credentials:
        raise ValueError("sentinel_username needs a sentinel_password")
    return RedisUrl(
        parts.scheme,
        _hosts(parts) + parts.path,
        _addresses(parts),
        master,
        int(database or 0),
        _credentials(parts),
        sentinel_credentials,
    )


def _parse_cluster(parts: SplitResult) -> RedisUrl:
    """``redis+cluster://[user:password@]host:port,...``, or ``rediss+cluster://`` for TLS."""
    if parts.path not in ("", "/", "/0"):
        raise ValueError("a Cluster has no database but 0")
    if parts.query:
        raise ValueError("a Cluster's URL has no options")
    return RedisUrl(
        parts.scheme,
        _hosts(parts) + parts.path,
        _addresses(parts),
        credentials=_credentials(parts),
    )


def _hosts(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _addresses(parts: SplitResult) -> tuple[Address, ...]:
    return tuple(_address(host) for host in _hosts(parts).split(","))


def _credentials(parts: SplitResult) -> dict[str, str]:
    """Those of a list of hosts, where a lone word is the password."""
    username, _, password = parts.netloc.rpartition("@")[0].rpartition(":")
    given = {"username": unquote(username), "password": unquote(password)}
    return {name: value for name, value in given.items() if value}


def _address(text: str) -> Address:
    """``host``, ``host:port`` or ``[IPv6]:port``. Blanks around it are ignored."""
    parts = urlsplit(f"//{text.strip(' ')}")
    host, port = parts.hostname, parts.port  # raises ValueError for a port over 65535
    if not host or not _HOST.fullmatch(host):
        raise ValueError("a host is missing or malformed")
    if port == 0:
        raise ValueError("there is no port 0")
    return host, 6379 if port is None else port
