"""A simulated Cluster, and nodes with a near-cache on it, for test_near_cache.py: every message
takes its own time, anything can be lost, stall or be paused, and each answer from memory is judged.

All of the code under test is the real one, from SessionStore down to PipelinedConnection. Simulated
are the network, the two masters and the clock (tests/harness/virtual_loop.py). The times of a
message's way to the server, of its execution there and of the reply's way are drawn one by one. So
a read can be executed before an ending and answered after it, a ping can be answered late, and so
on. The Cluster's bus takes no time: a message is published at every master at once, as far as those
take each other for masters.
"""

import asyncio
import base64
import random
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones import tokens
from sesiones.policy import SessionPolicy
from sesiones.redis_client.cluster import Cluster
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from sesiones.store.keys import Keys
from sesiones.store.near_cache import Entry, InvalidationTable
from sesiones.store.scripts import CHECK, END
from tests.harness.fake_redis import Wire, opened, packed
from tests.harness.virtual_loop import VirtualLoop

Address = tuple[str, int]

PROMISE_SECONDS = 1.0
"""How late at the most an answer from memory may show what was true."""
TOUCH_SECONDS, CACHE_SECONDS, WINDOW_SECONDS = 4, 30, 12
TIMEOUT_SECONDS = 0.25
EPOCH = 1_800_000_000.25
"""Redis's time when the clock of the event loop is 0."""
USERS = 6
HOSTS = (("one", 1), ("two", 2))


class Violation(AssertionError):
    """The promise was broken."""


@dataclass(frozen=True)
class Record:
    """A session as the masters have it."""

    token: str
    number: int
    user: int
    begun: int
    used: int
    expiry: int
    version: int = 0

    def text(self) -> bytes:
        fields = self.begun, self.used - self.begun, WINDOW_SECONDS, 1, self.number, self.user
        return b"%d %d %d %d %d %d:" % fields + b"%d" % self.version


class Link:
    """A connection to a master: what was sent waits, in order, for its time to be executed, and
    what was replied for its time to arrive."""

    def __init__(self, world: "World", master: "Master") -> None:
        self._world = world
        self._master = master
        self._arriving: deque[list[bytes]] = deque()
        self._leaving: deque[bytes] = deque()
        self._arrives_at = self._leaves_at = 0.0
        self._held_until = self._held_again_seconds = 0.0
        self.subscribed = False
        self.wire = Wire(self._received)

    def stall(self, seconds: float) -> None:
        """What is sent from now on, in either direction, takes that long or longer."""
        self._arrives_at = self._leaves_at = self._world.now + seconds

    def hold(self, seconds: float, again_seconds: float) -> None:
        """What is under way from the server comes that much later; behind its first piece, the rest
        is held again."""
        self._held_until = self._world.now + seconds
        self._held_again_seconds = again_seconds

    def _received(self, command: list[bytes]) -> None:
        self._arriving.append(command)
        self._arrives_at = max(self._arrives_at, self._world.now + self._world.delay())
        self._world.loop.call_at(self._arrives_at, self._arrive)

    def _arrive(self) -> None:
        if self._master.hangs_until > self._world.now:
            self._world.loop.call_at(self._master.hangs_until + 1e-6, self._arrive)
            return
        command = self._arriving.popleft()
        if not self.wire.is_closing():
            self.say(packed(self._world.execute(self._master, self, command)))

    def say(self, data: bytes) -> None:
        self._leaving.append(data)
        self._leaves_at = max(self._leaves_at, self._world.now + self._world.delay())
        self._world.loop.call_at(self._leaves_at, self._leave)

    def _leave(self) -> None:
        if self._held_until > self._world.now:
            self._world.loop.call_at(self._held_until + 1e-6, self._leave)
            return
        data = self._leaving.popleft()
        self._held_until = self._world.now + self._held_again_seconds
        self._held_again_seconds = 0.0
        if not self.wire.is_closing() and not self.wire.swallows:
            assert self.wire.protocol is not None
            self.wire.protocol.data_received(data)


class Master:
    def __init__(self, world: "World", address: Address) -> None:
        self._world = world
        self.address = address
        self.links: list[Link] = []
        self.hangs_until = 0.0
        self.demoted = False
        """Whether it is the replica, by now, of a master that no node knows yet, and hears nothing
        from it. Sessions of its slots end there."""

    def hang(self, seconds: float) -> None:
        self.hangs_until = self._world.now + seconds

    def promote(self) -> None:
        self.demoted = False
        for link in self.links:
            link.wire.lose()


class _Opening:
    """redis-py's connection, until it is open."""

    def __init__(self, world: "World", address: Address) -> None:
        self.host, self.port = address
        self._world = world
        self._writer = None

    async def connect(self) -> None:
        await asyncio.sleep(self._world.delay())
        master = self._world.masters[HOSTS.index((self.host, self.port))]
        if self._world.random.random() < 0.1:
            raise RedisConnectionError("refused")
        link = Link(self._world, master)
        master.links.append(link)
        self.__dict__.update(vars(opened(link.wire, self.host, self.port)))


class Pool:
    def __init__(self, world: "World", address: Address) -> None:
        self._world, self._address = world, address

    def make_connection(self) -> _Opening:
        return _Opening(self._world, self._address)


class World:
    """Two masters, and two nodes of which the first has two workers."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        self.loop = loop
        self.random = random.Random(seed)
        self.masters = [Master(self, address) for address in HOSTS]
        self.boundary = 8192
        self.bus_works = True
        """Whether what one master publishes is published at the other, too."""
        self._keys = Keys("sesiones")
        self.records: dict[str, Record] = {}
        """The live sessions, by key."""
        self.tokens: list[str] = []
        self._histories: dict[str, list[tuple[float, int | None]]] = defaultdict(list)
        """From when on each version of a session was true; None: it has ended."""
        self._ended_by: set[tuple[int, str]] = set()
        """The nodes that have acknowledged an ending, and its token."""
        self._numbers = iter(range(1, 1_000_000))
        table = InvalidationTable()
        self.stores = [(0, self._store(table)), (0, self._store(table)), (1, self._store())]
        self.hits = 0
        for user in range(USERS):
            self._create(user)

    @property
    def now(self) -> float:
        return self.loop.time()

    @property
    def redis_time(self) -> float:
        return EPOCH + self.now

    def delay(self) -> float:
        """Of one message: mostly short, sometimes longer than anything waits."""
        if self.random.random() < 0.02:
            return self.random.random()
        return self.random.choice((0.0005, 0.001, 0.002, 0.005, 0.02, 0.06))

    def _store(self, table: InvalidationTable | None = None) -> SessionStore:
        return SessionStore(
            lambda: Cluster([*HOSTS], {}, TIMEOUT_SECONDS),
            SessionPolicy(touch_seconds=TOUCH_SECONDS),
            key_prefix="sesiones",
            timeout_seconds=TIMEOUT_SECONDS,
            cache_seconds=CACHE_SECONDS,
            table=table,
        )

    def _create(self, user: int) -> None:
        secret = base64.urlsafe_b64encode(self.random.randbytes(32)).decode().rstrip("=")
        token, now = f"ses_{tokens.user_bucket(user)}{secret}", int(self.redis_time)
        self.tokens.append(token)
        record = Record(token, next(self._numbers), user, now, now, now + WINDOW_SECONDS)
        self._set(self._keys.session(token), record)

    def _set(self, key: str, record: Record) -> None:
        self.records[key] = record
        self._histories[record.token].append((self.now, record.version))

    # What the masters do.

    def owner(self, key: str) -> Master:
        return self.masters[key_slot(key.encode()) >= self.boundary]

    def execute(self, master: Master, link: Link, command: list[bytes]) -> Any:
        match command:
            case [b"EVALSHA", sha, number, *rest]:
                declared, arguments = rest[: int(number)], rest[int(number) : -3]
                keys = declared if sha.decode() == END.sha else arguments[2:]
                for key in keys:
                    if self.owner(key.decode()) is not master:
                        host, port = self.owner(key.decode()).address
                        if declared:
                            return RuntimeError(f"MOVED {key_slot(key)} {host}:{port}")
                        return RuntimeError("ERR Script attempted to access a non local key")
                if master.demoted:
                    return RuntimeError("READONLY it is a replica")
                texts = [key.decode() for key in keys]
                if sha.decode() == END.sha:
                    return [rest[-1], [b"", *self._end(texts[1])]]
                return [rest[-1], self._check(texts) if sha.decode() == CHECK.sha else []]
            case [b"SUBSCRIBE", channel]:
                link.subscribed = True
                return [b"subscribe", channel, 1]
            case [b"PUBLISH", _, message]:
                self._publish(master, message)
                return 1
            case [b"ROLE"]:
                return [b"slave" if master.demoted else b"master", 0, []]
            case [b"TIME"]:
                return [b"1", b"2"]
            case [b"CLUSTER", b"SLOTS"]:
                bounds = (0, self.boundary - 1), (self.boundary, 16383)
                return [
                    [first, last, [host.encode(), port, b"%040d" % port]]
                    for (first, last), (host, port) in zip(bounds, HOSTS, strict=True)
                ]
        return RuntimeError(f"ERR not here: {command[0]!r}")

    def _publish(self, publisher: Master, message: bytes) -> None:
        for master in self.masters if self.bus_works else [publisher]:
            for link in master.links:
                if link.subscribed and not master.demoted and not link.wire.is_closing():
                    link.say(packed([b"message", b"sesiones:invalidated", message]))

    def _check(self, keys: list[str]) -> list[Any]:
        reply: list[Any] = []
        for key in keys:
            record = self.records.get(key)
            if record is None or record.expiry <= int(self.redis_time):
                reply += [None, None]
                continue
            if self.is_due(record):
                now = int(self.redis_time)
                record = replace(record, used=now, expiry=now + WINDOW_SECONDS)
                self.records[key] = record
            reply += [record.text(), record.expiry]
        return [*reply, int(self.redis_time * 1e6), 0, []]

    def is_due(self, record: Any) -> bool:
        used = record.used if isinstance(record, Record) else record.Ultima_Actividad
        return int(self.redis_time) - used >= min(TOUCH_SECONDS, WINDOW_SECONDS // 2)

    def _end(self, key: str) -> list[Any]:
        """Another session of the same user takes the place of the one that ends."""
        record = self.records.pop(key, None)
        if record is None:
            return []
        self._histories[record.token].append((self.now, None))
        if record.token in self.tokens:
            self.tokens.remove(record.token)
            self._create(record.user)
        digest = tokens.digest(record.token).encode()
        self._publish_changed(key, digest)
        return [[digest, b"%d" % record.number, b"%d" % record.user]]

    def _publish_changed(self, key: str, digest: bytes) -> None:
        if not self.owner(key).demoted:  # else it ends at the new master
            self._publish(self.owner(key), digest)

    # What the test does.

    def end_elsewhere(self, token: str) -> None:
        """Through a node that has no cache."""
        self._end(self._keys.session(token))

    def change_elsewhere(self, token: str) -> None:
        key = self._keys.session(token)
        record = self.records.get(key)
        if record is not None:
            self._set(key, replace(record, version=record.version + 1))
            self._publish_changed(key, tokens.digest(token).encode())

    async def end_here(self, node: int, store: SessionStore, token: str) -> None:
        with suppress(StoreUnavailable):
            if await store.end(token, token) == 1:
                self._ended_by.add((node, token))

    def links(self) -> list[Link]:
        return [link for each in self.masters for link in each.links if not link.wire.is_closing()]

    def judge_all(self) -> None:
        """Look at every answer that a node would give from memory now."""
        for node, store in self.stores:
            cache = store.near_cache()
            assert cache is not None
            for token, entry in cache._entries.items():
                if cache.counts(entry, self.now):
                    self.hits += 1
                    self._judge(node, token, entry)

    def _judge(self, node: int, token: str, entry: Entry) -> None:
        if (node, token) in self._ended_by:
            raise Violation(f"the node that ended a session answers from memory at {self.now}")
        since = self.now - PROMISE_SECONDS - 1e-9
        versions = self._histories[token]
        recent = [version for begun, version in versions if begun >= since]
        before = [version for begun, version in versions if begun < since]
        shown = int(entry.sesion.Dispositivo)
        if shown not in [*recent, *before[-1:]]:
            raise Violation(f"version {shown} of {versions} at {self.now}")
        if int(self.redis_time) >= entry.sesion.Fecha_Expiracion:
            raise Violation(f"expired: {entry.sesion} at {self.redis_time}")
        if self.is_due(entry.sesion):
            raise Violation(f"a slide is due: {entry.sesion} at {self.redis_time}")
