"""A subscription to a server's messages, and the lease that says how long its silence can be
believed.

A cache that is told of every change needs to know that it would be told. Theory of operation:

1. A subscription is a connection of its own, in Redis's subscribed state. The messages that the
   server publishes and the replies to pings come on it in one order. So when a ping is answered,
   every message that was published before the server read the ping has been delivered.
2. Therefore an answered ping proves that nothing is missing up to the moment at which the ping was
   *sent*, and the lease lasts ``LEASE_SECONDS`` from that moment. (From the moment of the answer it
   would last too long: the answer may have waited anywhere.) A paused process, a hung server and a
   path that swallows bytes have one thing in common: no ping is answered, and the lease runs out.
3. A lease belongs to the connection that commands go over, and holds for what was read on that
   connection while the lease lasted. The subscription must lead to the same server. Behind a name,
   a proxy or a virtual address it might not; so a message that is published on that connection must
   arrive at the subscription before the lease begins, and the subscription's server must be a
   master, because a replica passes messages on with a delay.
4. The server can be made a replica while both connections stay open. Then others end sessions at
   its new master, and it may learn of them late or never. So with each ping the server is asked for
   its role, over the connection of the commands, and only a master's answer extends the lease.
5. When either connection is lost or replaced, the lease is revoked, and a later one is another
   object. So nothing that was read under the first is believed under the second.

SUBSCRIBE, to the channel that is subscribed already, serves as the ping: it is answered in the same
way, and PING would need a further permission of the ACL user.
"""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from sesiones.redis_client.connection import PipelinedConnection, described, set_server
from sesiones.tasks import MALFORMED_REPLY_ERRORS, background

LEASE_SECONDS = 1.0
"""How long an answered ping counts, from when it was sent."""
PING_SECONDS = 0.25
"""Between the answer to a ping and the next ping."""
RETRY_SECONDS = 0.25
"""The first pause after a failure. Each further one is twice as long: an ACL that does not allow a
subscription does not allow it soon after."""
RETRY_SECONDS_MAX = 4.0

_PROOF = b"proof "
"""What a message begins with that proves where a subscription leads. It is for that one alone."""

Connect = Callable[[], Awaitable[AbstractConnection]]
Verify = Callable[[PipelinedConnection], Awaitable[None]]
OnMessage = Callable[[bytes], None]
OnLease = Callable[[int, bool, str], None]
"""Called when a lease begins, is lost or cannot begin: by how much the number of masters without
one changes, whether one was lost, and why there is none; '' where that needs no explanation."""


class Lease:
    """Until when silence can be believed, in time.monotonic()'s time. It has not begun until it is
    extended, and does not begin again once it is revoked."""

    __slots__ = ("_revoked", "until")

    def __init__(self) -> None:
        self.until = -math.inf
        self._revoked = False

    def extend(self, until: float) -> None:
        if not self._revoked:
            self.until = until

    def revoke(self) -> None:
        self._revoked = True
        self.until = -math.inf


NO_LEASE = Lease()
"""That of a server without a subscription."""
NO_LEASE.revoke()


class Subscription(PipelinedConnection):
    """One connection in the subscribed state, and the lease on what is read on the publisher's
    connection, which commands go over."""

    def __init__(
        self,
        connection: AbstractConnection,
        publisher: PipelinedConnection,
        channel: str,
        on_message: OnMessage,
    ) -> None:
        super().__init__(connection, LEASE_SECONDS, idle_ping=None)
        self._publisher = publisher
        self._channel = channel
        self._on_message = on_message
        self._proof = _PROOF + secrets.token_hex(16).encode()
        self._proven_or_lost: asyncio.Future[None] = self._loop.create_future()
        self.lease = NO_LEASE

    async def begin(self) -> None:
        """Subscribe, and begin the lease. Raises RedisError, OSError, TimeoutError or
        MALFORMED_REPLY_ERRORS, as extend() does."""
        role, _ = await asyncio.gather(
            self.send(("ROLE",)), self.send(("SUBSCRIBE", self._channel))
        )
        _check_master(role)
        await self._publisher.send(("PUBLISH", self._channel, self._proof))
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                await self._proven_or_lost
        except TimeoutError:
            raise RedisConnectionError("the subscription leads to another server") from None
        self.lease = Lease()
        await self.extend()

    async def extend(self) -> None:
        """Ping, and extend the lease."""
        sent_at = time.monotonic()
        _, role = await asyncio.gather(
            self.send(("SUBSCRIBE", self._channel)), self._publisher.send(("ROLE",))
        )
        _check_master(role)
        self.lease.extend(sent_at + LEASE_SECONDS)

    def renew_lease(self) -> None:
        """Revoke the lease, and begin another: some keys have another owner."""
        revoked, self.lease = self.lease, Lease()
        self.lease.extend(revoked.until)
        revoked.revoke()

    def _deliver(self, reply: Any) -> None:
        if not (isinstance(reply, list) and reply[0] == b"message"):
            super()._deliver(reply)
        elif not reply[2].startswith(_PROOF):
            self._on_message(reply[2])
        elif reply[2] == self._proof:
            self._stop_waiting()

    def fail(self, reason: str, kind: type[RedisConnectionError] = RedisConnectionError) -> None:
        self.lease.revoke()
        self._stop_waiting()  # what begin() sends next fails
        super().fail(reason, kind)

    def _stop_waiting(self) -> None:
        if not self._proven_or_lost.done():
            self._proven_or_lost.set_result(None)


def _check_master(role: Any) -> None:
    """Raise RedisConnectionError unless the reply to ROLE is a master's."""
    if role[0] != b"master":
        raise RedisConnectionError("the server is a replica")


class _State(Enum):
    IDLE = "there is no connection to keep a subscription beside"
    MISSING = "there is no lease yet, or no longer"
    LEASED = "there is a lease, as long as pings are answered"


class Subscriber:
    """Keeps a subscription to a channel beside the connection that a server's commands go over."""

    def __init__(self, channel: str, on_message: OnMessage, on_lease: OnLease) -> None:
        self._channel = channel
        self._on_message = on_message
        self._on_lease = on_lease
        self._state = _State.IDLE
        self._subscription: Subscription | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def lease(self) -> Lease:
        """The lease on what is read on that connection. Another object: another lease."""
        return NO_LEASE if self._subscription is None else self._subscription.lease

    def renew_lease(self) -> None:
        """Revoke the lease, and begin another: some keys have another owner."""
        if self._state is _State.LEASED and self._subscription is not None:
            self._subscription.renew_lease()

    def follow(self, publisher: PipelinedConnection, connect: Connect, verify: Verify) -> None:
        """Commands go over the publisher's connection from now on. ``connect`` opens another one to
        its server; ``verify`` raises when that leads elsewhere."""
        self.drop()
        self._enter(_State.MISSING)
        self._running = background(self._run(publisher, connect, verify))

    def drop(self) -> None:
        """End the subscription and its lease: there is no connection to keep it beside."""
        if self._running is not None:
            self._running.cancel()
        self._end_subscription("the connection beside it was lost")
        self._enter(_State.IDLE)

    async def _run(self, publisher: PipelinedConnection, connect: Connect, verify: Verify) -> None:
        pause_seconds = RETRY_SECONDS
        while not publisher.transport.is_closing():
            try:
                self._subscription = subscription = Subscription(
                    await connect(), publisher, self._channel, self._on_message
                )
                await verify(subscription)
                await subscription.begin()
                self._enter(_State.LEASED)
                pause_seconds = RETRY_SECONDS
                while True:
                    await asyncio.sleep(PING_SECONDS)
                    await subscription.extend()
            except (RedisError, OSError, TimeoutError, *MALFORMED_REPLY_ERRORS) as error:
                self._end_subscription("given up")
                set_server(error, publisher.name)
                self._enter(_State.MISSING, described(error))
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)
        self._enter(_State.IDLE)

    def _end_subscription(self, reason: str) -> None:
        if self._subscription is not None:
            self._subscription.fail(reason)
            self._subscription = None

    def _enter(self, state: _State, reason: str = "") -> None:
        missing = (state is _State.MISSING) - (self._state is _State.MISSING)
        lost = self._state is _State.LEASED and state is not _State.LEASED
        self._state = state
        self._on_lease(missing, lost, reason)
