"""One connection to a server: one socket, any number of commands in flight.

redis-py opens it (the URL, TLS, AUTH, SELECT, Sentinel's discovery of the master); from then on
its transport is ours, and replies go from hiredis's reader straight to their callers, in order.
That is a fifth of the cost of redis-py's command cycle, and it is safe to cancel: a caller that
leaves keeps its place in the queue, so no reply can reach another, and there is no pool whose
connections could leak.

Relies on redis-py 8: ``ConnectionPool.make_connection()``, ``AbstractConnection._writer`` (the
``asyncio.StreamWriter``) and ``AbstractConnection._parser.parse_error`` (the reply's text to an
exception).
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import hiredis
from redis.asyncio import ConnectionPool, Redis, Sentinel
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

Argument = str | bytes | int
Execute = Callable[..., Awaitable[Any]]

Heard = Callable[[Any], None]
Concerned = Callable[[str], bool]
"""Whether something is about the keys of a hash tag."""
Changed = Callable[[Concerned], None]

Result = TypeVar("Result")

MISFITS = AttributeError, LookupError, TypeError, ValueError
"""What replies raise that are not of the server that was meant."""

CONFIRMED_SECONDS = 0.1
"""What replicas have to acknowledge a write; two fifths of a timeout that has no room for it."""
FOLLOW_SECONDS = 0.5
"""Between two looks at which master Sentinel names."""


class UnconfirmedError(RedisError):
    """Done, as far as the master goes; too few replicas are known to have it."""


class ReplacedError(RedisConnectionError):
    """Others say that another server is the master."""

    def __str__(self) -> str:
        return "replaced as the master"


class Link(asyncio.Protocol):
    """One open connection, until it is lost: that is told, if it has ever answered."""

    def __init__(self, connection: AbstractConnection, timeout_seconds: float) -> None:
        assert connection._writer is not None
        self._writer = connection._writer  # kept: it closes the transport when collected
        connection._reader = connection._writer = None
        self.transport: asyncio.WriteTransport = self._writer.transport
        self.address = getattr(connection, "host", None), getattr(connection, "port", None)
        self._timeout_seconds = timeout_seconds
        self.lost: Callable[[], None] = lambda: None
        self._answered = False
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError,
            replyError=connection._parser.parse_error,
        )
        self._waiting: deque[tuple[asyncio.Future[Any], asyncio.TimerHandle, Heard | None]] = (
            deque()
        )
        seconds = min(CONFIRMED_SECONDS, 0.4 * timeout_seconds)
        self._confirmed_ms = max(1, int(1000 * seconds))  # WAIT takes 0 for without end
        self._unconfirmed: list[asyncio.Future[int]] = []
        """Those whom the next WAIT serves."""
        self._confirming = False
        self.transport.set_protocol(self)

    @property
    def idle(self) -> bool:
        return not self._waiting

    def send(
        self, arguments: tuple[Argument, ...], heard: Heard | None = None
    ) -> asyncio.Future[Any]:
        """The reply. ``heard`` is told of it too, though the caller may have left; it must not
        raise."""
        future = self._loop.create_future()
        if self.transport.is_closing():
            future.set_exception(RedisConnectionError("connection lost"))
            return future
        timer = self._loop.call_later(self._timeout_seconds, self._overdue, future)
        self._waiting.append((future, timer, heard))
        self.transport.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]
        return future

    def confirmed(self, replicas: int) -> asyncio.Future[int]:
        """How many replicas have all that was written on this connection before; it is waited for
        ``replicas`` of them.

        WAIT (https://valkey.io/commands/wait/) keeps what is sent after it waiting. So one is out
        at a time, and the next one serves all who have asked meanwhile: nobody waits for more
        than two.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        self._unconfirmed.append(future)
        if not self._confirming:
            self._confirming = True
            self._loop.call_soon(self._confirm, replicas)
        return future

    def _confirm(self, replicas: int) -> None:
        asked, self._unconfirmed = self._unconfirmed, []
        reply = self.send(("WAIT", replicas, self._confirmed_ms))
        reply.add_done_callback(partial(self._confirm_done, replicas, asked))

    def _confirm_done(
        self, replicas: int, asked: list[asyncio.Future[int]], reply: asyncio.Future[int]
    ) -> None:
        self._confirming = bool(self._unconfirmed)
        if self._confirming:
            self._confirm(replicas)
        error = reply.exception()
        for future in asked:
            if future.done():  # its caller left
                continue
            if error is None:
                future.set_result(reply.result())
            else:
                future.set_exception(error)
                future.exception()  # seen, even where its caller has failed already

    def _overdue(self, future: asyncio.Future[Any]) -> None:
        # Replies come in order: when the first in the queue is late, nothing will come in time.
        if self._waiting and self._waiting[0][0] is future:
            self.fail("no reply in time")

    def data_received(self, data: bytes) -> None:
        self._answered = True
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                future, timer, heard = self._waiting.popleft()
                timer.cancel()
                if heard is not None and not isinstance(reply, Exception):
                    heard(reply)
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
        if self._answered:
            self.lost()

    def fail(self, reason: str) -> None:
        """Drop the connection, with everything in flight."""
        if not self.transport.is_closing():
            # With a reset: what has not left this machine must not be carried out after all, when
            # its caller has been told that it failed, or has had it done on another one. (What a
            # server that hangs has received, it does carry out.)
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        for future, timer, _ in self._waiting:
            timer.cancel()
            if not future.done():
                future.set_exception(RedisConnectionError(reason))
        self._waiting.clear()


class SingleFlight(Generic[Result]):
    """Work of which one run serves all who wait for it. One who leaves does not end it."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        self._work = work
        self._task: asyncio.Task[Result] | None = None
        self._closed = False

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin a run, unless one is under way."""
        if not self.running and not self._closed:
            self._task = asyncio.create_task(self._work())
            self._task.add_done_callback(self._done)

    async def __call__(self) -> Result:
        self.start()
        task = self._task
        if task is not None:
            await asyncio.wait({task})
        if task is None or task.cancelled():
            raise RedisConnectionError("closed")
        return task.result()

    def _done(self, task: "asyncio.Task[Result]") -> None:
        if task is self._task:  # the next one may have begun already
            self._task = None
        _seen(task)  # even where every caller has left

    def close(self) -> None:
        """End what runs, for good."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """The same, and wait until it has ended."""
        self.close()
        if self._task is not None:
            await asyncio.wait({self._task})


def _seen(task: asyncio.Task[Any]) -> None:
    """What it raised, if anything, has been seen."""
    if not task.cancelled():
        task.exception()


async def majority(asked: Sequence[Awaitable[bool]], yes: int = 0) -> bool:
    """Whether more than half say yes, of those asked and ``yes`` that need not be. Nobody is
    waited for whose word no longer matters; whoever fails has not said yes."""
    waiting = {asyncio.ensure_future(one) for one in asked}
    needed = (len(waiting) + yes) // 2 + 1
    try:
        while yes < needed <= yes + len(waiting):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with contextlib.suppress(RedisError, OSError, *MISFITS):
                    yes += task.result()
        return yes >= needed
    finally:
        for task in waiting:
            # Not waited for: redis-py may take its whole timeout to leave.
            task.add_done_callback(_seen)
            task.cancel()


class Server:
    """One server, on a connection that is opened when it is needed."""

    batch_max = 64  # the server works on one while its caller works on another
    in_flight_max = 2  # one is on the wire while the server works on another
    node_of = None

    def __init__(self, pool: ConnectionPool, timeout_seconds: float) -> None:
        # Raises for options that no connection has.
        pool.make_connection()  # type: ignore[no-untyped-call]
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._link: Link | None = None
        self._changed: Changed = lambda _: None
        self._opening = SingleFlight(self._open)

    async def execute(
        self,
        *arguments: Argument,
        keys: Sequence[str] = (),
        reads: bool = False,
        replicas: int = 0,
        heard: Heard | None = None,
    ) -> Any:
        link = await self._connected()
        sent = link.send(arguments, heard)
        if not replicas:
            return await sent
        confirmed = link.confirmed(replicas)
        try:
            reply, count = await sent, await confirmed
        finally:
            confirmed.cancel()
        if not isinstance(count, int) or count < replicas:
            raise UnconfirmedError(f"confirmed by {count} of {replicas} replicas in time")
        return reply

    async def execute_on_master(self, *arguments: Argument, keys: Sequence[str] = ()) -> Any:
        # Asked on the same connection, behind the answer: it was the master's.
        link, reply, role = await self._execute_twice(arguments, ("ROLE",))
        if not isinstance(role, list) or role[:1] != [b"master"] or not await self._named(link):
            link.fail("not the master's")
            raise RedisConnectionError("the server is not known to be the master")
        return reply

    async def masters(self) -> dict[str, Execute]:
        return {"redis": self.execute}

    async def sentinels(self) -> dict[str, Execute]:
        return {}

    async def execute_asking(self, *arguments: Argument) -> Any:
        """A command on a key that is being moved to this server."""
        return (await self._execute_twice(("ASKING",), arguments))[2]

    async def _execute_twice(
        self, first: tuple[Argument, ...], second: tuple[Argument, ...]
    ) -> tuple[Link, Any, Any]:
        """One right after the other, on one connection."""
        link = await self._connected()
        return link, *await asyncio.gather(link.send(first), link.send(second))

    async def _connected(self) -> Link:
        link = self._link
        if link is None or link.transport.is_closing():
            link = await self._opening()
        return link

    async def _named(self, link: Link) -> bool:
        """Whether others say, too, that the link's server is the master."""
        return True

    async def _replaced(self, link: Link) -> bool:
        """Whether others say that another server is the master."""
        return False

    async def _open(self) -> Link:
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        if connection._writer is None or connection._writer.transport.is_closing():
            raise RedisConnectionError("closed as soon as it was open")
        link = Link(connection, self._timeout_seconds)
        try:
            if await self._replaced(link):
                raise ReplacedError
        except BaseException:
            link.fail("refused")
            raise
        link.lost = self._lost  # nobody has been told anything by one that was refused
        self._link = link
        return link

    def watch(self, changed: Changed) -> None:
        self._changed = changed

    def _lost(self) -> None:
        self._changed(lambda _: True)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for it."""
        return not self._opening.running and (self._link is None or self._link.idle)

    def reset(self) -> None:
        if self._link is not None:
            self._link.fail("reset")

    async def aclose(self) -> None:
        self._opening.close()
        self.reset()


class SentinelMaster(Server):
    """The master that Sentinel names.

    One that is replaced while it answers, because it was slow or comes back, is told so by Sentinel
    after 8 s and more. Until then it takes what will be lost, and knows of no logout at the other.
    """

    def __init__(
        self, sentinel: Sentinel, name: str, pool: ConnectionPool, timeout_seconds: float
    ) -> None:
        super().__init__(pool, timeout_seconds)
        self._sentinel = sentinel
        self._name = name
        self._following: asyncio.Task[None] | None = None

    async def _open(self) -> Link:
        try:
            link = await super()._open()
        except MasterNotFoundError:  # whose text has every Sentinel's every setting
            raise RedisConnectionError(f"no Sentinel names the master {self._name}") from None
        except (RedisError, *MISFITS) as error:
            # Whoever named it knows no better: redis-py would believe the same one for ever.
            self._sentinel.sentinels.append(self._sentinel.sentinels.pop(0))
            if isinstance(error, RedisError):
                raise
            raise RedisConnectionError("what answers is no Sentinel") from error
        self._unfollow()
        self._following = asyncio.create_task(self._follow(link))
        return link

    async def _follow(self, link: Link) -> None:
        while not link.transport.is_closing():
            await asyncio.sleep(FOLLOW_SECONDS)
            if await self._replaced(link):
                link.fail(str(ReplacedError()))

    def _unfollow(self) -> None:
        if self._following is not None:
            self._following.cancel()

    async def _named(self, link: Link) -> bool:
        return await self._most_name(lambda address: address == link.address)

    async def _replaced(self, link: Link) -> bool:
        return await self._most_name(lambda address: address != link.address)

    async def _most_name(self, such: Callable[[tuple[str, int]], bool]) -> bool:
        # A majority of the Sentinels: those on the wrong side of a partition know no better.
        async def names(sentinel: Redis) -> bool:
            command = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name
            reply = await sentinel.execute_command(*command)  # type: ignore[no-untyped-call]
            return reply is not None and such((reply[0].decode(), int(reply[1])))

        return await majority([names(sentinel) for sentinel in self._sentinel.sentinels])

    async def sentinels(self) -> dict[str, Execute]:
        return {
            "{host}:{port}".format(**sentinel.connection_pool.connection_kwargs): (
                sentinel.execute_command
            )
            for sentinel in self._sentinel.sentinels
        }

    async def aclose(self) -> None:
        self._unfollow()
        await super().aclose()
        for sentinel in self._sentinel.sentinels:
            await sentinel.aclose()
