"""The URLs of Redis, Sentinel and Cluster: parsed and checked. No connection is made."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Address = tuple[str, int]

_HOST = re.compile(r"[^\s,/?#@\[\]\x00-\x20\x7f]+")
_DATABASE = re.compile(r"[0-9]{1,9}")
_OPTION = re.compile(r"db|username|password|ssl_(?!cert_reqs|min_version)\w+")
"""redis-py's options that the URL of a single server may have: those that say where the server is
and who asks. How to ask is the service's own choice."""


@dataclass(frozen=True)
class Nodes:
    """The addresses of a URL, of Sentinels or of nodes of a Cluster, and the rest of the URL."""

    addresses: tuple[Address, ...]
    master: str = ""
    database: int = 0
    credentials: Mapping[str, str] = field(default_factory=dict)
    """redis-py's options username and password, for the servers that hold the sessions."""
    sentinel_credentials: Mapping[str, str] = field(default_factory=dict)
    """The same, for the Sentinels."""


def check(url: str) -> None:
    """Raise ValueError for a URL that connect() would refuse."""
    parsers = {"redis+cluster": parse_cluster, "redis+sentinel": parse_sentinel}
    parsers.get(url.partition("://")[0], check_single)(url)


def check_single(url: str) -> None:
    """Raise ValueError for mistakes that redis-py accepts: an unescaped password whose first half
    it takes for a host, a database that is not a number, a list of hosts, options that break every
    connection."""
    parts = _split(url)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if not _OPTION.fullmatch(name):
            raise ValueError(f"the option {name} is not known")
        if name == "db" and not _DATABASE.fullmatch(value):
            raise ValueError("the database is not a number")
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.startswith("/"):
            raise ValueError("unix:///path/of/the/socket has three slashes")
    elif parts.scheme in ("redis", "rediss"):
        database = re.fullmatch(r"/?|/[0-9]{1,9}", parts.path)
        if not parts.hostname or " " in parts.netloc or not database:
            raise ValueError(
                "redis://user:password@host:port/database, the password percent-encoded"
            )
        _address(parts.netloc.rpartition("@")[2])
    else:
        raise ValueError("an unknown scheme")


def parse_sentinel(url: str) -> Nodes:
    """``redis+sentinel://[user:password@]host:port,.../master[/database]``, with
    ``?sentinel_username=&sentinel_password=`` where the Sentinels ask for a password."""
    parts = _split(url)
    addresses, credentials = _authority(parts.netloc)
    master, _, database = parts.path.removeprefix("/").partition("/")
    if not re.fullmatch(r"[!-~]+", master):
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
    return Nodes(addresses, master, int(database or 0), credentials, sentinel_credentials)


def parse_cluster(url: str) -> Nodes:
    """``redis+cluster://[user:password@]host:port,...``"""
    parts = _split(url)
    if parts.path not in ("", "/", "/0"):
        raise ValueError("a Cluster has no database but 0")
    if parts.query:
        raise ValueError("a Cluster's URL has no options")
    addresses, credentials = _authority(parts.netloc)
    return Nodes(addresses, credentials=credentials)


def _split(url: str) -> Any:
    if "#" in url:
        raise ValueError('a "#" in a password is written %23')
    if re.search(r"[\x00-\x1f\x7f]", url):  # urlsplit() drops some of them
        raise ValueError("a control character")
    return urlsplit(url)


def _authority(netloc: str) -> tuple[tuple[Address, ...], dict[str, str]]:
    """The addresses and the credentials of ``[user:password@]host:port,host:port``."""
    userinfo, _, hosts = netloc.rpartition("@")
    username, _, password = userinfo.rpartition(":")
    credentials = {"username": unquote(username), "password": unquote(password)}
    return (
        tuple(_address(host) for host in hosts.split(",")),
        {name: value for name, value in credentials.items() if value},
    )


def _address(text: str) -> Address:
    """``host``, ``host:port`` or ``[IPv6]:port``. Blanks around it are ignored."""
    parts = urlsplit(f"//{text.strip(' ')}")
    host, port = parts.hostname, parts.port  # raises ValueError for a port over 65535
    if not host or not _HOST.fullmatch(host):
        raise ValueError("a host is missing or malformed")
    if port == 0:
        raise ValueError("there is no port 0")
    return host, 6379 if port is None else port
