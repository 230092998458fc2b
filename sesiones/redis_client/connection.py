"""One pipelined connection to a server: one socket, any number of commands in flight.

redis-py opens it (the URL, TLS, AUTH, SELECT). From then on this module owns its transport, and
replies go from hiredis's reader straight to their callers. That costs a fifth of redis-py's command
cycle, and a caller can be cancelled safely.

Theory of operation. RESP2 replies carry no number: the n-th reply belongs to the n-th command that
was written. So one queue has an entry for each command whose bytes have been given to the
transport, in that order, and these rules keep the two in step:

1. A command is packed before it gets its entry: one that cannot be packed leaves neither.
2. Nothing that can fail stands between the entry and the write. Should either raise, the
   connection is dropped, because it is not known how much of the command is out.
3. An entry leaves the queue when its reply has been read, and in no other way. The entry of a
   cancelled caller keeps its place, and its reply is discarded.
4. An exception while replies are read drops the connection, with everything in flight. So does a
   KeyboardInterrupt, which can come between any two lines, in a loop that may go on after it.

Callbacks. ``on_reply`` turns a reply into the result of its command. It is called in the turn of
the event loop in which the reply is read, before any later reply, even if the caller was cancelled,
ran out of time or waits for replicas. The store relies on that: the sessions that a script has
ended have tombstones before the loss of the connection queues tombstones for replay. A task that
awaits the reply would run a turn later, or only after WAIT; and a task that outlives its caller's
deadline could send its command late.

Time. Each entry has the time at which its command was sent, and one watchdog looks at the oldest
entry. A reply that takes longer than the timeout drops the connection. When half of the timeout has
passed without a byte from the server, the commands that are safe to repeat fail, so that their
callers have the other half for a second try on another connection. TIME is sent on a connection
that has been idle for a second, so that a server that went away silently is noticed without
traffic.

Relies on redis-py 8: ``AbstractConnection._writer`` (the ``asyncio.StreamWriter``) and
``AbstractConnection._parser.parse_error`` (the reply's text to an exception).
"""

import asyncio
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sesiones.tasks import ReadFirstTimer, background, retrieve_exception

Argument = str | bytes | int
OnReply = Callable[[Any], Any]

IDLE_PING_SECONDS = 1.0
"""How long a connection may be idle before it is probed with the idle ping."""
WATCHDOG_SECONDS_MIN = 0.05
"""Between two looks of the watchdog at a connection that is idle."""

CONFIRMED_SECONDS = 0.1
"""How long WAIT waits for replicas; at most two fifths of the timeout."""

logger = logging.getLogger("sesiones.redis")


def server_name(connection: AbstractConnection) -> str:
    """The server of a connection of redis-py's: host and port, or the path of a socket."""
    path: str | None = getattr(connection, "path", None)
    return path or f"{getattr(connection, 'host', None)}:{getattr(connection, 'port', None)}"


def set_server(error: BaseException, server: str) -> None:
    """Say which server the error is about, unless that is known."""
    if not hasattr(error, "server"):
        setattr(error, "server", server)  # noqa: B010


def described(error: BaseException, text: str = "") -> str:
    """The error's text, or that text, behind the server that it is about. A TimeoutError is raised
    for a CancelledError, which set_server() may have seen."""
    text = text or str(error) or type(error).__name__
    server: str = getattr(error, "server", "") or getattr(error.__cause__, "server", "")
    return text if server in text else f"{server}: {text}"


class NoReplyError(RedisConnectionError, RedisTimeoutError):
    """The connection was dropped, because its oldest command had no reply in time."""


class SilentError(RedisConnectionError, RedisTimeoutError):
    """No reply and no other byte in half of the time: another connection may do better."""


class _InFlight(NamedTuple):
    """A command that was written and has not been answered."""

    future: "asyncio.Future[Any]"
    sent_at: float
    """Of time.monotonic()."""
    safe_to_repeat: bool
    on_reply: OnReply | None


class Sent(NamedTuple):
    """A command that was sent."""

    connection: "PipelinedConnection"
    reply: "asyncio.Future[Any]"


class PipelinedConnection(asyncio.Protocol):
    """One open connection, until it is lost. ``on_lost`` is called then.

    Errors are set on the futures of the commands, and not raised.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        timeout_seconds: float,
        idle_ping: tuple[str, ...] | None = ("TIME",),
    ) -> None:
        """``idle_ping``: a command for an idle connection. The scripts call TIME too, so that the
        ACL user needs no further permission for it."""
        assert connection._writer is not None
        self._writer = connection._writer  # kept: it closes the transport when collected
        connection._reader = connection._writer = None
        self.transport: asyncio.WriteTransport = self._writer.transport
        self.address: tuple[Any, Any] = (
            getattr(connection, "host", None),
            getattr(connection, "port", None),
        )
        self.name = server_name(connection)
        self.on_lost: Callable[[], None] = lambda: None
        self.silent = False
        """Whether commands have waited for half of their time without a byte from the server."""
        self.retired = False
        """Whether another connection has replaced it. It closes once nothing is in flight."""
        self.last_answered_sent_at = self._received_at = time.monotonic()
        """When the newest command that has been answered was sent. Until the first answer: when the
        connection was opened."""
        self.answered = False
        """Whether the server has answered any command."""
        self._timeout_seconds = timeout_seconds
        self._idle_ping = idle_ping
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError,
            replyError=connection._parser.parse_error,
        )
        self._in_flight: deque[_InFlight] = deque()
        seconds = min(CONFIRMED_SECONDS, 0.4 * timeout_seconds)
        self.wait_ms = max(1, int(1000 * seconds))  # to WAIT, 0 means without end
        self._current_wait: asyncio.Task[int] | None = None
        """The WAIT in flight, or the last one."""
        self._next_wait: asyncio.Task[int] | None = None
        """The WAIT that will be sent when that one has been answered."""
        self.transport.set_protocol(self)
        self._watchdog: ReadFirstTimer | asyncio.TimerHandle | None = None
        self._watch()

    @property
    def idle(self) -> bool:
        return not self._in_flight

    @property
    def usable(self) -> bool:
        """Whether a new command may be sent on it."""
        return not self.silent and not self.transport.is_closing()

    def send(
        self,
        arguments: tuple[Argument, ...],
        on_reply: OnReply | None = None,
        *,
        safe_to_repeat: bool = False,
        future: "asyncio.Future[Any] | None" = None,
    ) -> "asyncio.Future[Any]":
        """The reply, or what ``on_reply`` returns or raises. ``on_reply`` is called with the reply
        when it is read, before any later reply, even if the caller was cancelled.
        ``safe_to_repeat``: the future may fail with SilentError after half of the time.
        ``future``: the one to return, if the caller has made it.

        Raises what arguments raise that cannot be packed (TypeError, UnicodeEncodeError).
        """
        command = hiredis.pack_command(arguments)  # type: ignore[arg-type]
        if future is None:
            future = self._loop.create_future()
        if self.transport.is_closing():
            future.set_exception(RedisConnectionError("connection lost"))
            return future
        try:
            self._in_flight.append(_InFlight(future, time.monotonic(), safe_to_repeat, on_reply))
            self.transport.write(command)
        except Exception as error:
            self.fail(f"not written: {type(error).__name__}")
        except BaseException as error:
            future.cancel()  # no caller will get it
            self.fail(f"interrupted: {type(error).__name__}")
            raise
        return future

    def confirmed(self, replicas: int) -> "asyncio.Future[int]":
        """How many replicas have everything that was written on this connection before, after
        waiting for ``replicas`` of them.

        WAIT (https://valkey.io/commands/wait/) holds up the commands that are sent after it. So one
        WAIT is in flight at a time, and the next one serves all callers that have come meanwhile
        (group commit): no caller waits for more than two.
        """
        # It is done already if all tasks of the loop were cancelled before it was sent.
        if self._next_wait is None or self._next_wait.done():
            self._next_wait = background(self._wait(replicas))
            self._next_wait.add_done_callback(retrieve_exception)
        confirmed = asyncio.shield(self._next_wait)
        confirmed.add_done_callback(retrieve_exception)
        return confirmed

    async def _wait(self, replicas: int) -> int:
        if self._current_wait is not None:
            await asyncio.wait({self._current_wait})
        self._current_wait, self._next_wait = self._next_wait, None
        count: int = await self.send(("WAIT", replicas, self.wait_ms))
        return count

    @property
    def _waits_for_replicas(self) -> bool:
        waits = self._current_wait, self._next_wait
        return any(wait is not None and not wait.done() for wait in waits)

    def data_received(self, data: bytes) -> None:
        try:
            self._received_at = time.monotonic()
            self.silent = False
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._deliver(reply)
        except (RedisConnectionError, IndexError):
            self.fail("not Redis's protocol")
        except Exception:
            logger.exception("a reply could not be read")
            self.fail("a reply could not be read")
        except BaseException as error:
            self.fail(f"interrupted: {type(error).__name__}")
            raise
        if self.retired and not self._in_flight:
            self.fail("replaced by another connection")

    def _deliver(self, reply: Any) -> None:
        """Raises IndexError for a reply that no command is waiting for."""
        future, self.last_answered_sent_at, _, on_reply = self._in_flight.popleft()
        self.answered = True
        if isinstance(reply, Exception):
            if not future.done():
                future.set_exception(reply)
            return
        if on_reply is not None:
            try:
                reply = on_reply(reply)
            except Exception as error:
                if future.done():
                    logger.exception("a callback failed whose caller was cancelled")
                else:
                    future.set_exception(error)
                return
        if not future.done():
            future.set_result(reply)

    def eof_received(self) -> None:
        # No reply can come any more. The transport would first write what is unsent, to a server
        # that may never read it; until then it would be closing, and connection_lost() not called.
        self.fail("connection lost")

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("connection lost")
        self.on_lost()

    def fail(self, reason: str, kind: type[RedisConnectionError] = RedisConnectionError) -> None:
        """Drop the connection. Everything in flight fails with an error of this kind."""
        if not self.transport.is_closing():
            # The transport closes with a reset, so that commands that have not left this machine
            # are not carried out after their callers were told that they failed, or sent them on
            # another connection. (A server that hangs still carries out what it has received.)
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        if self._watchdog is not None:
            self._watchdog.cancel()
        failed = list(self._in_flight)
        self._in_flight.clear()
        for future, *_ in failed:
            if not future.done():
                future.set_exception(kind(reason))

    def _watch(self) -> None:
        """Look again when the oldest command in flight will be late, and at the latest before a new
        one could be late by half."""
        seconds = max(self._timeout_seconds / 2, WATCHDOG_SECONDS_MIN)
        if self._in_flight:
            left = self._seconds_left()
            if left <= 0:
                self._watchdog = ReadFirstTimer(self._loop, self._loop.time() + left, self._late)
                return
            seconds = min(seconds, left)
        elif (
            self._idle_ping is not None
            and time.monotonic() - self._received_at >= IDLE_PING_SECONDS
        ):
            self.send(self._idle_ping).add_done_callback(retrieve_exception)
        self._watchdog = self._loop.call_later(seconds, self._watch)

    def _seconds_left(self) -> float:
        """Until the oldest command is late, or late by half on a connection that is silent."""
        now, sent_at = time.monotonic(), self._in_flight[0].sent_at
        left = sent_at + self._timeout_seconds - now
        # The server is silent during a WAIT.
        if not self.silent and not self._waits_for_replicas:
            left = min(left, max(sent_at, self._received_at) + self._timeout_seconds / 2 - now)
        return left

    def _late(self) -> None:
        """Everything that has arrived was read. Is the oldest command still late?"""
        if self._in_flight and self._seconds_left() <= 0:
            if time.monotonic() - self._in_flight[0].sent_at >= self._timeout_seconds:
                # Replies come in order: when the oldest is late, so are all others.
                self.fail(f"no reply in {self._timeout_seconds:g} s", NoReplyError)
                return
            self.silent = True
            for future, _, safe_to_repeat, _ in self._in_flight:
                if safe_to_repeat and not future.done():
                    seconds = self._timeout_seconds / 2
                    future.set_exception(SilentError(f"no reply in {seconds:g} s"))
        if not self.transport.is_closing():
            self._watch()
