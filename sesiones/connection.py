"""Commands on Redis, by URL: one server, the master that Sentinel names, or a Cluster."""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import ConnectionPool, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sesiones.cluster import Cluster
from sesiones.link import Argument, Changed, Execute, Heard, SentinelMaster, Server


class Commands(Protocol):
    """What the store needs of Redis."""

    batch_max: int
    """Checks that one call may carry."""
    in_flight_max: int
    """Calls with checks that may be out at once, for each node."""

    @property
    def node_of(self) -> Callable[[str], Hashable] | None:
        """The node that has the keys of a hash tag, as far as known. None: one has them all."""

    async def execute(
        self,
        *arguments: Argument,
        keys: Sequence[str] = (),
        reads: bool = False,
        replicas: int = 0,
        heard: Heard | None = None,
    ) -> Any:
        """One command's reply. Raises redis.exceptions.RedisError or OSError.

        ``keys``: what it is about, whether the command declares it or not; the first one's node
        gets it. ``reads``: it writes nothing. On a Cluster, it raises SlotMovedError when the
        keys are not, or not all, on that node: nothing was written then. ``replicas``: raises
        UnconfirmedError unless so many have what it wrote; that keeps later commands waiting.
        ``heard`` is told the reply as soon as it comes, though the caller may have left by then.
        """

    async def execute_on_master(self, *arguments: Argument, keys: Sequence[str]) -> Any:
        """The same of a command that a replica, or a master that has been replaced, would answer
        too: it raises if that is not ruled out."""

    async def masters(self) -> dict[str, Execute]:
        """execute() on each server that takes writes, by its name: one, or those of a Cluster."""

    async def sentinels(self) -> dict[str, Execute]:
        """execute() on each Sentinel that the URL names, by its host and port; else none."""

    def watch(self, changed: Changed) -> None:
        """Call it whenever keys may have come into other hands: a connection was lost, and whoever
        answers the next one may know less; or a Cluster has given slots to another master."""

    def reset(self) -> None:
        """Drop the connection: the next command opens, and where Sentinel knows it finds, anew."""

    async def aclose(self) -> None:
        """Close for good; what is out fails."""


def connect(url: str, timeout_seconds: float) -> Commands:
    """Commands on the server that the URL names; no I/O until the first one.

    URLs are redis-py's, and ``redis+sentinel://host:port,.../master/db`` and
    ``redis+cluster://host:port,...``. Raises ValueError or whatever redis-py
    raises for any other.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        # Retries are the store's affair: it knows what may be repeated, and until when.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    scheme, _, rest = url.partition("://")
    _check_url(scheme, url)
    if scheme == "redis+cluster":
        nodes, path, credentials = _addresses(rest)
        if path not in ("", "0"):
            raise ValueError("a Cluster has no database but 0")
        return Cluster(nodes, options | credentials, timeout_seconds)
    if scheme == "redis+sentinel":
        nodes, path, credentials = _addresses(rest)
        master, _, database = path.partition("/")
        if not master:
            raise ValueError("the name of the master is missing: redis+sentinel://host:port/master")
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            nodes, sentinel_kwargs=dict(options), **options
        )
        client = sentinel.master_for(master, db=int(database or 0), **credentials)
        return SentinelMaster(sentinel, master, client.connection_pool, timeout_seconds)
    return Server(ConnectionPool.from_url(url, **options), timeout_seconds)


def _check_url(scheme: str, url: str) -> None:
    """What redis-py takes without a word: an unescaped password that makes a host of its first
    half, a database that is no number, options that break each connection."""
    if "#" in url:
        raise ValueError('a "#" in a password is written %23')
    if scheme in ("redis+sentinel", "redis+cluster"):  # whose hosts are no URL's
        if "?" in url:
            raise ValueError("options where there are none")
        return
    parts = urlsplit(url)
    for name in parse_qs(parts.query, keep_blank_values=True):
        if not re.fullmatch(r"db|username|password|ssl_(?!cert_reqs|min_version)\w+", name):
            raise ValueError(f"the option {name} is not known")
    if scheme == "unix":
        if not parts.path:
            raise ValueError("the path of the socket is missing")
    elif scheme in ("redis", "rediss"):
        if not parts.hostname or not re.fullmatch(r"/?|/[0-9]+", parts.path):
            raise ValueError("redis://user:password@host:port/database, the password escaped")
    else:
        raise ValueError("an unknown scheme")


def _addresses(rest: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The hosts and ports, the path and the credentials of ``[user:password@]h:p,h:p/path``."""
    authority, _, path = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    nodes = []
    for host in hosts.split(","):
        parts = urlsplit(f"//{host}")
        if not parts.hostname:
            raise ValueError("a host is missing")
        nodes.append((parts.hostname, parts.port or 6379))
    username, _, password = userinfo.rpartition(":")
    credentials = {"username": unquote(username), "password": unquote(password)}
    return nodes, path, {name: value for name, value in credentials.items() if value}
