"""The connection to Redis: one socket, any number of commands in flight.

redis-py opens it (the URL, TLS, AUTH, SELECT, Sentinel's discovery of the master); from then on
its transport is ours, and replies go from hiredis's reader straight to their callers, in order.
That is a fifth of the cost of redis-py's command cycle, and it is safe to cancel: a caller that
leaves keeps its place in the queue, so no reply can reach another, and there is no pool whose
connections could leak.

Relies on redis-py 8: ``ConnectionPool.make_connection()``, ``AbstractConnection._writer`` (the
``asyncio.StreamWriter``) and ``AbstractConnection._parser.parse_error`` (the reply's text to an
exception). On a Cluster redis-py's own client carries every command.
"""

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException

Argument = str | bytes | int
Execute = Callable[..., Awaitable[Any]]


class Commands(Protocol):
    """What the store needs of Redis."""

    batch_max: int
    """Checks that one call may carry."""
    in_flight_max: int
    """Calls with checks that may be out at once."""

    async def execute(self, *arguments: Argument) -> Any:
        """One command's reply. Raises redis.exceptions.RedisError."""

    async def masters(self) -> dict[str, Execute]:
        """execute() on each server that takes writes, by its name: one, or those of a Cluster."""

    def reset(self) -> None:
        """Drop the connection: the next command opens, and where Sentinel knows it finds, anew."""

    async def aclose(self) -> None:
        """Close for good."""


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
        return _Cluster(
            RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in nodes],
                require_full_coverage=False,
                **credentials,
                **options,
            )
        )
    if scheme == "redis+sentinel":
        nodes, path, credentials = _addresses(rest)
        master, _, database = path.partition("/")
        if not master:
            raise ValueError("the name of the master is missing: redis+sentinel://host:port/master")
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            nodes, sentinel_kwargs=dict(options), **options
        )
        client = sentinel.master_for(master, db=int(database or 0), **credentials)
        return _Single(client.connection_pool, timeout_seconds, sentinel.sentinels)
    return _Single(ConnectionPool.from_url(url, **options), timeout_seconds)


def _check_url(scheme: str, url: str) -> None:
    """What redis-py takes without a word: an unescaped password that makes a host of its first
    half, a database that is no number, options that break each connection."""
    parts = urlsplit(url)
    if parts.fragment or "#" in url:
        raise ValueError('a "#" in a password is written %23')
    for name in parse_qs(parts.query, keep_blank_values=True):
        if not re.fullmatch(r"db|username|password|ssl_(?!cert_reqs|min_version)\w+", name):
            raise ValueError(f"the option {name} is not known")
    if scheme == "unix":
        if not parts.path:
            raise ValueError("the path of the socket is missing")
    elif scheme in ("redis", "rediss"):
        if not parts.hostname or not re.fullmatch(r"/?|/[0-9]+", parts.path):
            raise ValueError("redis://user:password@host:port/database, the password escaped")
    elif scheme not in ("redis+sentinel", "redis+cluster") or parts.query:
        raise ValueError("an unknown scheme, or options where there are none")


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


class _Link(asyncio.Protocol):
    """One open connection, until it is lost."""

    def __init__(self, connection: AbstractConnection, timeout_seconds: float) -> None:
        assert connection._writer is not None
        self._writer = connection._writer  # kept: it closes the transport when collected
        connection._reader = connection._writer = None
        self.transport: asyncio.WriteTransport = self._writer.transport
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError,
            replyError=connection._parser.parse_error,
        )
        self._waiting: deque[tuple[asyncio.Future[Any], asyncio.TimerHandle]] = deque()
        self.transport.set_protocol(self)

    def send(self, arguments: tuple[Argument, ...]) -> asyncio.Future[Any]:
        if self.transport.is_closing():
            raise RedisConnectionError("connection lost")
        future = self._loop.create_future()
        timer = self._loop.call_later(self._timeout_seconds, self._overdue, future)
        self._waiting.append((future, timer))
        self.transport.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]
        return future

    def _overdue(self, future: asyncio.Future[Any]) -> None:
        # Replies come in order: when the first in the queue is late, nothing will come in time.
        if self._waiting and self._waiting[0][0] is future:
            self.fail("no reply in time")

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                future, timer = self._waiting.popleft()
                timer.cancel()
                if future.done():  # its caller left
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (RedisConnectionError, IndexError):
            self.fail("not Redis's protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("connection lost")

    def fail(self, reason: str) -> None:
        """Drop the connection, with everything in flight."""
        if not self.transport.is_closing():
            # With a reset: what lies in the kernel's buffers must not be carried out after all,
            # when its caller has been told that it failed, or has had it done on another one.
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        for future, timer in self._waiting:
            timer.cancel()
            if not future.done():
                future.set_exception(RedisConnectionError(reason))
        self._waiting.clear()


class _Single:
    """One server, or the master that Sentinel names."""

    batch_max = 64  # the server works on one while its caller works on another
    in_flight_max = 2  # one is on the wire while the server works on another

    def __init__(
        self, pool: ConnectionPool, timeout_seconds: float, sentinels: Sequence[Redis] = ()
    ) -> None:
        # Raises for options that no connection has.
        pool.make_connection()  # type: ignore[no-untyped-call]
        self._pool = pool
        self._sentinels = sentinels
        self._timeout_seconds = timeout_seconds
        self._link: _Link | None = None
        self._opening: asyncio.Task[_Link] | None = None

    async def execute(self, *arguments: Argument) -> Any:
        link = self._link
        if link is None or link.transport.is_closing():
            link = await self._open_once()
        return await link.send(arguments)

    async def masters(self) -> dict[str, Execute]:
        return {"redis": self.execute}

    async def _open_once(self) -> _Link:
        # However many callers wait, one connection is opened; a caller that leaves does not end it.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[_Link]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # seen, even where every caller has left

    async def _open(self) -> _Link:
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        if connection._writer is None or connection._writer.transport.is_closing():
            raise RedisConnectionError("closed as soon as it was open")
        self._link = _Link(connection, self._timeout_seconds)
        return self._link

    def reset(self) -> None:
        if self._link is not None:
            self._link.fail("reset")

    async def aclose(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        self.reset()
        for sentinel in self._sentinels:
            await sentinel.aclose()


class _Cluster:
    """A Cluster, on redis-py's client: a call goes to the node of its key."""

    batch_max = 1
    in_flight_max = 1000

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        self._initializing: asyncio.Task[Any] | None = None

    async def execute(self, *arguments: Argument, **options: Any) -> Any:
        with _redis_errors():
            await self._discover()
            return await self._cluster.execute_command(*arguments, **options)

    async def masters(self) -> dict[str, Execute]:
        with _redis_errors():
            await self._discover()
        nodes = self._cluster.get_primaries()
        return {node.name: partial(self.execute, target_nodes=node) for node in nodes}

    async def _discover(self) -> None:
        # redis-py closes connections under callers that come while it finds the nodes, and under
        # all when the caller that started it leaves: a task of its own does it.
        if self._initializing is None or _failed(self._initializing):
            self._initializing = asyncio.create_task(self._initialize())
        await asyncio.shield(self._initializing)

    async def _initialize(self) -> None:
        await self._cluster.initialize()

    def reset(self) -> None:
        """redis-py's client finds a slot's new master by itself."""

    async def aclose(self) -> None:
        if self._initializing is not None:
            self._initializing.cancel()
        await self._cluster.aclose()


@contextmanager
def _redis_errors() -> Iterator[None]:
    try:
        yield
    except (RedisClusterException, RuntimeError, AttributeError) as error:
        # What redis-py raises, beside RedisError, when its nodes go away under a call.
        raise RedisConnectionError(str(error)) from error


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
