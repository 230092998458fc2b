"""A Cluster: a connection to each master, and a map of which master has which slot.

The map comes from any node (CLUSTER SLOTS), and the nodes' answers correct it. A node that does not
have the slot carries nothing out: its answer MOVED names the node that has it. While a slot's keys
are moved one by one, reads follow them (ASK) and writes are refused: a script touches keys that it
does not declare, and must not do half of its work on either node.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from redis.asyncio import ConnectionPool
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.redis_client.connection import (
    Argument,
    OnReply,
    PipelinedConnection,
    Sent,
    SilentError,
    described,
)
from sesiones.redis_client.single import (
    Address,
    Execute,
    Listener,
    ReplacedError,
    Server,
    UnconfirmedError,
)
from sesiones.redis_client.subscription import NO_LEASE, Lease, OnLease, OnMessage
from sesiones.tasks import SingleFlight, majority
from sesiones.tokens import BUCKETS

REFRESH_SECONDS_MIN = 0.1
"""The least time between two refreshes of the slot map. More often is of no use, because a failover
takes longer."""
REFRESH_SECONDS_MAX = 5.0
"""The greatest time between two refreshes of the slot map. Without requests, no other event tells
that a master was replaced while it still answers."""
REDIRECTED_SECONDS = 0.01
"""The pause before a call is sent again that was redirected twice. The nodes disagree then on who
has the slot, which is usually over sooner than that."""


SLOT_ERRORS = AskError, TryAgainError, ReadOnlyError
"""The errors other than MOVED by which a node says that it does not have the slot, or not all of
its keys. READONLY is one of them, because a replica answers it to a call that declares no key; to a
call with keys it answers MOVED. When a call declares no key and the node lacks some of those that
its script uses, the script fails with "non local key", which execute() looks for."""


class SlotMovedError(RedisError):
    """The keys are not all on one node, or not on the node that was asked. Nothing was written."""


SLOT_OF_BUCKET = {bucket: key_slot(bucket.encode()) for bucket in BUCKETS}


class _Node(Server):
    """One node. ``node_ids``: returns the IDs of the Cluster's nodes, as far as they are known.
    They tell it from another Redis at the address of a node that is gone, which would answer, and
    have no session."""

    def __init__(
        self,
        address: Address,
        node_ids: Callable[[], dict[Address, str]],
        options: dict[str, Any],
        timeout_seconds: float,
    ) -> None:
        host, port = address
        super().__init__(ConnectionPool(host=host, port=port, **options), timeout_seconds)
        self._address = address
        self._node_ids = node_ids

    async def _verify(self, connection: PipelinedConnection) -> None:
        known = self._node_ids()
        if self._address not in known:
            return
        reply = await connection.send(("CLUSTER", "SLOTS"))
        try:
            _, node_ids = masters_of(reply, self._address[0])
        except ValueError:  # it has no slots: it was made anew, or has left the Cluster
            raise ReplacedError from None
        # One ID in common is enough: another node of the same Cluster may be at the address by now.
        if set(node_ids.values()).isdisjoint(known.values()):
            raise ReplacedError


class Cluster:
    """Commands on a Cluster's masters. No connection sends READONLY, so no replica answers."""

    batch_max = Server.batch_max
    in_flight_max = Server.in_flight_max

    def __init__(
        self, seeds: Sequence[Address], options: dict[str, Any], timeout_seconds: float
    ) -> None:
        self._seeds = seeds
        self._options = options
        self._timeout_seconds = timeout_seconds
        self._servers: dict[Address, _Node] = {}
        self._map: list[Address | None] = [None] * SLOTS
        """The master of each slot, as it was read."""
        self._masters = self._map.copy()
        """The same, corrected by the answers MOVED since."""
        self._node_ids: dict[Address, str] = {}
        """The IDs of all nodes. A replica may be the only node left to ask for the map."""
        self._refreshing = SingleFlight(self._refresh)
        self._refreshed_at = -REFRESH_SECONDS_MIN
        self._map_read_at = math.inf
        """When the map was requested: its masters were the slots' owners then. Infinite before the
        first map and at the end, when no session can be ended through this."""
        self._refresh_timer: asyncio.TimerHandle | None = None
        self._listener: Listener = lambda _: None
        self._subscribe: Callable[[_Node], None] | None = None
        for seed in seeds:
            self._server(seed)

    def node_of(self, bucket: str) -> Address | None:
        return self._masters[SLOT_OF_BUCKET[bucket]]

    def connection(self, keys: Sequence[str]) -> PipelinedConnection | None:
        address = self._masters[key_slot(keys[0].encode())]
        return None if address is None else self._server(address).connection()

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
        slot = key_slot(keys[0].encode()) if keys else 0
        asking: Address | None = None  # where the last answer, an ASK, leads
        redirections = 0
        while True:
            # What was sent concerns the node that it was sent to, wherever the slot is by now.
            address = sent.connection.address if sent else asking or await self._master(slot)
            server = self._server(address)
            try:
                if asking:
                    return await server.execute_asking(*arguments)
                return await server.execute(
                    *arguments,
                    replicas=replicas,
                    safe_to_repeat=safe_to_repeat,
                    on_reply=on_reply,
                    sent=sent,
                )
            except (NoScriptError, UnconfirmedError):
                raise
            except (RedisError, OSError, asyncio.CancelledError) as error:
                if isinstance(error, AskError) and reads:
                    self._refreshing.start()
                    asking = error.host or address[0], error.port
                else:
                    await self._learn_from(error, slot, address)
                    if not isinstance(error, MovedError):
                        raise
                    asking = None
            sent = None
            redirections += 1
            if redirections > 1:
                await asyncio.sleep(REDIRECTED_SECONDS)

    async def execute_on_master(
        self, *arguments: Argument, keys: Sequence[str], safe_to_repeat: bool = False
    ) -> Any:
        slots = {key_slot(key.encode()) for key in keys}
        address = await self._master(min(slots))
        try:
            reply = await self._server(address).execute_on_master(
                *arguments, safe_to_repeat=safe_to_repeat
            )
        except (RedisError, OSError, asyncio.CancelledError) as error:
            await self._learn_from(error, min(slots), address)
            if isinstance(error, MovedError):
                raise SlotMovedError(str(error)) from error
            raise

        async def agrees(other: Address) -> bool:
            view, _ = masters_of(await self._server(other).execute("CLUSTER", "SLOTS"), other[0])
            return all(view[slot] == address for slot in slots)

        # A majority of all masters, this one included: as many as it takes to elect another.
        others = {master for master in self._masters if master} - {address}
        if not await majority([agrees(other) for other in others], yes=1):
            self._refreshing.start()
            raise ClusterDownError("the node is not known to be the slot's master")
        return reply

    async def _learn_from(self, error: BaseException, slot: int, address: Address) -> None:
        """Refresh the map in the background: any failure of a command, including a cancelled
        caller, can mean that it is stale. MOVED corrects it at once. Raise SlotMovedError for the
        other errors about a slot."""
        self._refreshing.start()
        if isinstance(error, MovedError):
            self._server(address).renew_lease()
            if error.host != "?":  # the refreshed map will have an address that MOVED lacks
                self._masters[slot] = error.host or address[0], error.port
        elif isinstance(error, SLOT_ERRORS) or "non local key" in str(error):
            raise SlotMovedError(str(error)) from error
        elif isinstance(error, (RedisConnectionError, OSError)) and not isinstance(
            error, SilentError
        ):
            with contextlib.suppress(RedisError, OSError):
                await self._refreshing()  # so that the caller's next try succeeds

    async def masters(self) -> dict[str, Execute]:
        # A known map is good enough, and is refreshed for the next time: waiting for a node that
        # hangs would use up the caller's time.
        if any(self._masters):
            self._refreshing.start()
        else:
            await self._refreshing()
        masters = sorted({master for master in self._masters if master})
        # By its address: the object of a node that is no longer used may be dropped at any time.
        return {f"{host}:{port}": partial(self._execute_on, (host, port)) for host, port in masters}

    async def _execute_on(self, address: Address, *arguments: Argument, **options: Any) -> Any:
        return await self._server(address).execute(*arguments, **options)

    def _server(self, address: Address) -> _Node:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = _Node(
                address, lambda: self._node_ids, self._options, self._timeout_seconds
            )
            server.on_owner_change(lambda _: self._connection_lost(address))
        return server

    def subscribe(self, channel: str, on_message: OnMessage, on_lease: OnLease) -> None:
        self._subscribe = lambda server: server.subscribe(channel, on_message, on_lease)

    def lease(self, bucket: str) -> Lease:
        server = self._servers.get(self.node_of(bucket) or ("", 0))
        return NO_LEASE if server is None else server.lease(bucket)

    def _connection_lost(self, address: Address) -> None:
        self._listener({bucket for bucket in BUCKETS if self.node_of(bucket) == address})

    async def _master(self, slot: int) -> Address:
        if self._masters[slot] is None:
            await self._refreshing()
        address = self._masters[slot]
        if address is None:
            raise ClusterDownError(f"no node has slot {slot}")
        return address

    async def _refresh(self) -> None:
        """Read the map again, from the first node that has one."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._refreshed_at + REFRESH_SECONDS_MIN - loop.time())
        self._refreshed_at = loop.time()
        if self._refresh_timer is not None:
            self._refresh_timer.cancel()
        self._refresh_timer = loop.call_later(REFRESH_SECONDS_MAX, self._refreshing.start)
        # The seeds come last, because another Redis may be at their addresses by now.
        asked = [*random.sample([*self._node_ids], len(self._node_ids)), *self._seeds]
        replaced = 0
        for address in dict.fromkeys(asked):
            read_at = time.monotonic()
            try:
                reply = await self._server(address).execute("CLUSTER", "SLOTS")
                masters, self._node_ids = masters_of(reply, address[0])
            except (RedisError, OSError, ValueError) as error:
                failure = error
                replaced += isinstance(error, ReplacedError)
            else:
                self._use_map(masters)
                self._map_read_at = read_at
                self._drop_unused_servers()
                return
        if 2 * replaced > len(self._node_ids):
            # Most addresses answer with other node IDs: the Cluster was made anew. Ask the seeds.
            self._node_ids = {}
        raise RedisConnectionError(f"no node knows the Cluster: {described(failure)}")

    def _use_map(self, masters: list[Address | None]) -> None:
        before, self._map, self._masters = self._map, masters, masters.copy()
        if masters != before:
            slots = SLOT_OF_BUCKET.items()
            self._listener({bucket for bucket, slot in slots if masters[slot] != before[slot]})
            for server in self._servers.values():
                server.renew_lease()
        if self._subscribe is not None:
            # A session may come to any master at any time, so each is listened to from the start.
            for address in {address for address in masters if address}:
                self._subscribe(self._server(address))
                self._server(address).open()

    def _drop_unused_servers(self) -> None:
        """Close the connections to nodes that are no masters, once they are idle."""
        masters = set(self._masters)
        for address in [address for address in self._servers if address not in masters]:
            if self._servers[address].idle:
                self._servers.pop(address).reset()

    def on_owner_change(self, listener: Listener) -> None:
        self._listener = listener

    def last_answered_sent_at(self, bucket: str) -> float:
        server = self._servers.get(self.node_of(bucket) or ("", 0))
        answered = time.monotonic() if server is None else server.last_answered_sent_at(bucket)
        return min(self._map_read_at, answered)

    async def sentinels(self) -> dict[str, Execute]:
        return {}

    def reset(self) -> None:
        for server in self._servers.values():
            server.reset()

    async def aclose(self) -> None:
        self._refreshing.close()
        if self._refresh_timer is not None:
            self._refresh_timer.cancel()
        # A master that has had no command is closed, too, so that none opens a connection later.
        for address in {*self._servers, *filter(None, self._masters)}:
            await self._server(address).aclose()
        await asyncio.sleep(0)  # until the listener was told of the connections
        self._map_read_at = math.inf


def masters_of(reply: Any, asked: str) -> tuple[list[Address | None], dict[Address, str]]:
    """The master of each slot, and every node's ID, from a reply to CLUSTER SLOTS. ``asked``: the
    host that gave it, for a node that does not know its own. Raises ValueError for any other
    reply, and for one without slots, which comes from a node that has left its Cluster."""
    masters: list[Address | None] = [None] * SLOTS
    node_ids: dict[Address, str] = {}
    try:
        for first, last, *nodes in reply:
            addresses = [_address(node, asked) for node in nodes]
            if not 0 <= first <= last < SLOTS:
                raise ValueError(f"slots {first} to {last}")
            for host, port in addresses:
                if not 0 < port < 65536:
                    raise ValueError(f"port {port} of {host}")
            masters[first : last + 1] = [addresses[0]] * (last - first + 1)
            node_ids.update(zip(addresses, (node[2].decode() for node in nodes), strict=True))
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError("not a reply to CLUSTER SLOTS") from error
    if not node_ids:
        raise ValueError("no slots")
    return masters, node_ids


def _address(node: Any, asked: str) -> Address:
    host, port, _, *metadata = node
    text = (host or b"").decode()
    if text == "?":  # a hostname that is not known; the IP stands behind the name
        fields = metadata[0] if metadata else []
        text = fields[fields.index(b"ip") + 1].decode() if b"ip" in fields else ""
    return text or asked, port
