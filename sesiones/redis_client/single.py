"""One server, and the master that Sentinel names."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from sesiones.redis_client.connection import (
    Argument,
    OnReply,
    PipelinedConnection,
    Sent,
    server_name,
    set_server,
)
from sesiones.redis_client.opening import open_connection
from sesiones.redis_client.subscription import NO_LEASE, Lease, OnLease, OnMessage, Subscriber
from sesiones.tasks import (
    MALFORMED_REPLY_ERRORS,
    SingleFlight,
    background,
    cancel,
    majority,
)
from sesiones.tokens import BUCKETS

Address = tuple[str, int]
Execute = Callable[..., Awaitable[Any]]

Listener = Callable[[Set[str]], None]
"""Called with the buckets, which are hash tags, whose keys may have another owner."""

FOLLOW_SECONDS = 0.5
"""Between two looks at which master Sentinel names."""


class UnconfirmedError(RedisError):
    """The master has carried the write out, but too few replicas have confirmed it."""


class ReplacedError(RedisConnectionError):
    """Another server is the master by now."""

    def __str__(self) -> str:
        return "replaced as the master"


class Server:
    """One server, on a connection that is opened when it is needed."""

    batch_max = 64  # more in one call would make the server and this process wait for each other
    in_flight_max = 2  # while the server works on one call, the other is on its way
    node_of = None
    idle_ping: tuple[str, ...] | None = ("TIME",)
    """The command that is sent on an idle connection, if any."""

    def __init__(self, pool: ConnectionPool, timeout_seconds: float) -> None:
        self._pool = pool
        # Raises for options that no connection has.
        self.name = server_name(pool.make_connection())  # type: ignore[no-untyped-call]
        """The address that the newest connection was opened to, or is to be opened to."""
        self._timeout_seconds = timeout_seconds
        self._connection: PipelinedConnection | None = None
        self._open_connections: set[PipelinedConnection] = set()
        """The newest one, and replaced ones that still have commands in flight."""
        self._listener: Listener = lambda _: None
        self._opening = SingleFlight(self._open)
        self._subscriber: Subscriber | None = None
        self._connect = partial(open_connection, pool)
        """Opens another connection to the server of the newest one."""

    def connection(self, keys: Sequence[str] = ()) -> PipelinedConnection | None:
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def execute(
        self,
        *arguments: Argument,
        keys: Sequence[str] = (),
        reads: bool = False,
        replicas: int = 0,
        safe_to_repeat: bool = False,
        on_reply: OnReply | None = None,
        sent: Sent | None = None,
    ) -> Any:
        try:
            if sent is not None:
                return await sent.reply
            connection = await self._connected()
            replied = connection.send(arguments, on_reply, safe_to_repeat=safe_to_repeat)
            if not replicas:
                return await replied
            confirmed = connection.confirmed(replicas)
            try:
                reply, count = await replied, await confirmed
            finally:
                confirmed.cancel()
            if not isinstance(count, int) or count < replicas:
                limit = f"{connection.wait_ms / 1000:g} s"
                raise UnconfirmedError(f"confirmed by {count} of {replicas} replicas in {limit}")
            return reply
        except BaseException as error:
            set_server(error, self.name)
            raise

    async def execute_on_master(
        self, *arguments: Argument, keys: Sequence[str] = (), safe_to_repeat: bool = False
    ) -> Any:
        # ROLE follows the command on one connection: a master's ROLE proves the reply a master's.
        connection, reply, role = await self._execute_twice(
            arguments, ("ROLE",), safe_to_repeat=safe_to_repeat
        )
        if not (isinstance(role, list) and role[:1] == [b"master"]):
            connection.fail("not the master's")
        elif await self._is_named(connection):
            return reply
        raise RedisConnectionError("the server is not known to be the master")

    async def masters(self) -> dict[str, Execute]:
        return {"redis": self.execute}

    async def sentinels(self) -> dict[str, Execute]:
        return {}

    def last_answered_sent_at(self, bucket: str) -> float:
        # Copied at once: another thread's loop may ask while this one opens or loses a connection.
        moments = [connection.last_answered_sent_at for connection in self._open_connections.copy()]
        return min(moments, default=time.monotonic())

    async def execute_asking(self, *arguments: Argument) -> Any:
        """A command on a key that is being moved to this server."""
        return (await self._execute_twice(("ASKING",), arguments))[2]

    async def _execute_twice(
        self,
        first: tuple[Argument, ...],
        second: tuple[Argument, ...],
        *,
        safe_to_repeat: bool = False,
    ) -> tuple[PipelinedConnection, Any, Any]:
        """One right after the other, on one connection."""
        try:
            connection = await self._connected()
            replies = await asyncio.gather(
                *(connection.send(each, safe_to_repeat=safe_to_repeat) for each in (first, second))
            )
            return connection, *replies
        except BaseException as error:
            set_server(error, self.name)
            raise

    async def _connected(self) -> PipelinedConnection:
        return self.connection() or await self._opening()

    async def _is_named(self, connection: PipelinedConnection) -> bool:
        """Whether Sentinel, too, says that the connection's server is the master. Drops the
        connection when another one is."""
        return True

    async def _verify(self, connection: PipelinedConnection) -> None:
        """Raise RedisError when the connection leads to another server than it should."""

    async def _open(self) -> PipelinedConnection:
        return await self._open_from(self._pool)

    async def _open_from(self, pool: ConnectionPool) -> PipelinedConnection:
        self.name = server_name(pool.make_connection())  # type: ignore[no-untyped-call]
        connection = PipelinedConnection(
            await open_connection(pool), self._timeout_seconds, self.idle_ping
        )
        try:
            await self._verify(connection)
            if connection.transport.is_closing():
                raise RedisConnectionError("closed as soon as it was open")
        except BaseException:
            connection.fail("refused")
            raise
        # The loss of a connection matters only from here on: no session was ended through one that
        # _verify() has refused.
        connection.on_lost = lambda: self._lost(connection)
        for replaced in self._open_connections:
            replaced.retired = True
            if replaced.idle:
                replaced.fail("replaced by another connection")
        self._open_connections.add(connection)
        self._connection = connection
        self._connect = partial(open_connection, pool)
        if self._subscriber is not None:
            self._subscriber.follow(connection, self._connect, self._verify)
        return connection

    def subscribe(self, channel: str, on_message: OnMessage, on_lease: OnLease) -> None:
        if self._subscriber is None:
            self._subscriber = Subscriber(channel, on_message, on_lease)
            if self._connection is not None and self._connection.usable:
                self._subscriber.follow(self._connection, self._connect, self._verify)

    def lease(self, bucket: str) -> Lease:
        return NO_LEASE if self._subscriber is None else self._subscriber.lease

    def renew_lease(self) -> None:
        """Revoke the lease, and begin another: some keys have another owner."""
        if self._subscriber is not None:
            self._subscriber.renew_lease()

    def open(self) -> None:
        """Open a connection in the background, unless there is one."""
        if self.connection() is None:
            self._opening.start()

    def on_owner_change(self, listener: Listener) -> None:
        self._listener = listener

    def _lost(self, connection: PipelinedConnection) -> None:
        # The listener is called while last_answered_sent_at() still counts this connection.
        # Otherwise the tombstones that it has to queue could expire first, by the answers of the
        # connection that has replaced this one. A connection that never answered has ended no
        # session: each attempt at a server that accepts and closes would replay all tombstones.
        if connection.answered:
            self._listener(BUCKETS)
        self._open_connections.discard(connection)
        if self._subscriber is not None and connection is self._connection:
            self._subscriber.drop()

    @property
    def idle(self) -> bool:
        """Whether no command is in flight, and none waits for a connection to be opened."""
        return self._opening.idle and all(each.idle for each in self._open_connections)

    def reset(self) -> None:
        for connection in [*self._open_connections]:
            connection.fail("reset")
        if self._subscriber is not None:
            self._subscriber.drop()

    async def aclose(self) -> None:
        self._opening.close()
        self.reset()


class Sentinel(Server):
    """One Sentinel. It needs no idle ping, because it is asked often enough; so its users need no
    permission for TIME."""

    idle_ping = None

    def __init__(self, address: Address, options: Mapping[str, Any], timeout: float) -> None:
        super().__init__(ConnectionPool(host=address[0], port=address[1], **options), timeout)

    async def master(self, name: str) -> Address:
        """The address of the master of that name. Raises RedisError, OSError or
        MALFORMED_REPLY_ERRORS."""
        reply = await self.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        if reply is None:
            raise RedisConnectionError(f"knows no master {name}")
        host, port = reply
        return host.decode(), int(port)


class SentinelMaster(Server):
    """The master that Sentinel names.

    Every Sentinel is asked, and the majority decides, because a Sentinel on the wrong side of a
    partition names a master that has been replaced. A replaced master that still answers is demoted
    by Sentinel after 8 s or more. Until then it takes writes that will be lost, and lacks the
    logouts at the new master. So a connection is dropped as soon as a majority names another
    master.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        name: str,
        options: Mapping[str, Any],
        sentinel_options: Mapping[str, Any],
        timeout_seconds: float,
    ) -> None:
        """``options`` and ``sentinel_options``: of redis-py's connections to the master and to the
        Sentinels."""
        super().__init__(ConnectionPool(**options), timeout_seconds)
        self.name = f"the master {name}"  # until its address is known
        self._options = options
        self._name = name
        self._sentinels = [
            Sentinel(address, sentinel_options, timeout_seconds) for address in addresses
        ]
        self._following: asyncio.Task[None] | None = None

    async def sentinels(self) -> dict[str, Execute]:
        return {sentinel.name: sentinel.execute for sentinel in self._sentinels}

    async def _open(self) -> PipelinedConnection:
        host, port = await self._discover()
        connection = await self._open_from(ConnectionPool(host=host, port=port, **self._options))
        self._stop_following()
        self._following = background(self._follow(connection))
        return connection

    async def _verify(self, connection: PipelinedConnection) -> None:
        if await self._most_name(lambda address: address != connection.address):
            raise ReplacedError

    async def _discover(self) -> Address:
        """The master's address. As soon as a majority of the Sentinels names the same address, it
        is that one. Where no majority does, the Sentinels have little time after the first answer,
        and it is the address that most of their answers name."""
        named: Counter[Address] = Counter()
        reasons: list[str] = []
        asked: dict[asyncio.Future[Address], Sentinel] = {
            background(sentinel.master(self._name)): sentinel for sentinel in self._sentinels
        }
        waiting = set(asked)
        patience_seconds = None
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=patience_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for vote in done:
                    try:
                        address = vote.result()
                    except (RedisError, OSError) as error:
                        reasons.append(f"{asked[vote].name}: {error or type(error).__name__}")
                    except MALFORMED_REPLY_ERRORS:
                        reasons.append(f"{asked[vote].name}: not a Sentinel")
                    else:
                        named[address] += 1
                        if named[address] > len(self._sentinels) / 2:
                            return address
                        # A Sentinel that hangs must not use up the time that the caller has left.
                        patience_seconds = self._timeout_seconds / 5
        finally:
            cancel(asked)
        if not named:
            why = "; ".join(sorted(reasons))
            raise RedisConnectionError(f"no Sentinel names the master {self._name} ({why})")
        return named.most_common(1)[0][0]

    async def _follow(self, connection: PipelinedConnection) -> None:
        """Drop the connection as soon as a majority names another master; and when this is
        cancelled with all other tasks of a loop that may go on."""
        try:
            while not connection.transport.is_closing():
                await asyncio.sleep(FOLLOW_SECONDS)
                if await self._most_name(lambda address: address != connection.address):
                    connection.fail(str(ReplacedError()))
        except asyncio.CancelledError:
            if not connection.retired:
                connection.fail("no longer followed")
            raise

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()

    async def _is_named(self, connection: PipelinedConnection) -> bool:
        if await self._most_name(lambda address: address == connection.address):
            return True
        # Where too few Sentinels answer, the connection stays: other commands are in flight on it.
        if await self._most_name(lambda address: address != connection.address):
            connection.fail(str(ReplacedError()))
        return False

    async def _most_name(self, matches: Callable[[Address], bool]) -> bool:
        """Whether a majority of the Sentinels names a master whose address matches."""

        async def names(sentinel: Sentinel) -> bool:
            return matches(await sentinel.master(self._name))

        return await majority([names(sentinel) for sentinel in self._sentinels])

    async def aclose(self) -> None:
        self._stop_following()
        await super().aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()
