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
4. When either connection is lost or replaced, the lease is revoked, and a later one is another
   object. So nothing that was read under the first is believed under the second.

SUBSCRIBE, to the channel that is subscribed already, serves as the ping: it is answered in the same
way, and PING would need a further permission of the ACL user.
"""

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from sesiones.redis_client.connection import PipelinedConnection
from sesiones.tasks import MALFORMED_REPLY_ERRORS, background

LEASE_SECONDS = 1.0
"""How long an answered ping counts, from when it was sent."""
PING_SECONDS = 0.25
"""Between two pings."""
RETRY_SECONDS = 0.25
"""Between two tries to subscribe."""

Connect = Callable[[], Awaitable[AbstractConnection]]
Verify = Callable[[PipelinedConnection], Awaitable[None]]
OnMessage = Callable[[bytes], None]
OnLease = Callable[[int, bool, str], None]
"""Called when a lease begins, is lost or cannot begin: by how much the number of masters without
one changes, whether one was lost, and why there is none; '' where that needs no explanation."""


class Lease:
    """Until when silence can be believed, in time.monotonic()'s time."""

    __slots__ = ("until",)

    def __init__(self, until: float = -math.inf) -> None:
        self.until = until


NO_LEASE = Lease()
"""That of a server without a subscription. It never begins."""


class Subscription(PipelinedConnection):
    """One connection in the subscribed state. ``lease`` lasts as long as pings are answered."""

    def __init__(self, connection: AbstractConnection, channel: str, on_message: OnMessage) -> None:
        super().__init__(connection, LEASE_SECONDS, ("SUBSCRIBE", channel), PING_SECONDS)
        self._channel = channel
        self._on_message = on_message
        self._proof = secrets.token_hex(16).encode()
        self._proven: asyncio.Future[None] = self._loop.create_future()
        self.lease = NO_LEASE
        self.closed = asyncio.Event()

    @property
    def _idle_since(self) -> float:
        # Messages do not keep it from being pinged, because they do not extend the lease.
        return self.last_answered_sent_at

    async def begin(self, publisher: PipelinedConnection) -> None:
        """Subscribe, and begin a lease on what is read on the publisher's connection. Raises
        RedisError, OSError, TimeoutError or MALFORMED_REPLY_ERRORS."""
        role, _ = await asyncio.gather(
            self.send(("ROLE",)), self.send(("SUBSCRIBE", self._channel))
        )
        if role[0] != b"master":
            raise RedisConnectionError("it leads to a replica")
        async with asyncio.timeout(LEASE_SECONDS):
            await publisher.send(("PUBLISH", self._channel, self._proof))
            await self._proven
        self.lease = Lease(self.last_answered_sent_at + LEASE_SECONDS)

    def renew_lease(self) -> None:
        """Revoke the lease, and begin another: some keys have another owner."""
        if self.lease is not NO_LEASE:
            revoked, self.lease = self.lease, Lease(self.lease.until)
            revoked.until = NO_LEASE.until

    def _deliver(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[0] == b"message":
            if reply[2] != self._proof:
                self._on_message(reply[2])
            elif not self._proven.done():
                self._proven.set_result(None)
            return
        super()._deliver(reply)
        if self.lease is not NO_LEASE:
            self.lease.until = self.last_answered_sent_at + LEASE_SECONDS

    def fail(self, reason: str, kind: type[RedisConnectionError] = RedisConnectionError) -> None:
        self.renew_lease()
        self.lease = NO_LEASE
        self.closed.set()
        super().fail(reason, kind)


class Subscriber:
    """Keeps a subscription to a channel beside the connection that a server's commands go over."""

    def __init__(self, channel: str, on_message: OnMessage, on_lease: OnLease) -> None:
        self._channel = channel
        self._on_message = on_message
        self._on_lease = on_lease
        self._missing = False
        self._subscription: Subscription | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def lease(self) -> Lease:
        """The lease on what is read on that connection. Another object: another lease."""
        return NO_LEASE if self._subscription is None else self._subscription.lease

    def renew_lease(self) -> None:
        """Revoke the lease, and begin another: some keys have another owner."""
        if self._subscription is not None:
            self._subscription.renew_lease()

    def follow(self, publisher: PipelinedConnection, connect: Connect, verify: Verify) -> None:
        """Commands go over the publisher's connection from now on. ``connect`` opens another one to
        its server; ``verify`` raises when that leads elsewhere."""
        self.drop()
        self._report(missing=True)
        self._running = background(self._run(publisher, connect, verify))

    def drop(self) -> None:
        """End the subscription and its lease: there is no connection to keep it beside."""
        if self._running is not None:
            self._running.cancel()
        lost = self.lease is not NO_LEASE
        if self._subscription is not None:
            self._subscription.fail("the connection beside it was lost")
        self._report(missing=False, lost=lost)

    async def _run(self, publisher: PipelinedConnection, connect: Connect, verify: Verify) -> None:
        while not publisher.transport.is_closing():
            begun = False
            try:
                subscription = Subscription(await connect(), self._channel, self._on_message)
                self._subscription = subscription
                await verify(subscription)
                await subscription.begin(publisher)
                begun = True
                self._report(missing=False)
                await subscription.closed.wait()
                reason = "the subscription was lost"
            except (RedisError, OSError, TimeoutError, *MALFORMED_REPLY_ERRORS) as error:
                reason = str(error) or type(error).__name__
                if self._subscription is not None:
                    self._subscription.fail("given up")
            self._report(missing=True, lost=begun, reason=reason)
            await asyncio.sleep(RETRY_SECONDS)

    def _report(self, *, missing: bool, lost: bool = False, reason: str = "") -> None:
        self._on_lease(missing - self._missing, lost, reason)
        self._missing = missing
