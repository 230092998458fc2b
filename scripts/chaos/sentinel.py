"""A master, two replicas, three Sentinels, two nodes of the service: the master is killed under
load, and once more while nothing is replicated."""

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain, product

import orjson
import uvloop

from scripts.chaos import Bar
from scripts.chaos.failover import (
    MAY_STOP_SECONDS,
    MAY_TAKE_SECONDS,
    answered,
    counted,
    losses,
    settings,
    slowest,
)
from tests.harness.redis_server import RedisSentinels, wait_until
from tests.harness.service import Service
from tests.harness.traffic import LOST, OVERWRITTEN, WRITES, Client, Traffic, words

KILLS = {0: 2, 1: 5}
"""By SESIONES_WAIT_REPLICAS."""
RATE, SHORT_RATE = 2000, 300
SECONDS = 15
DOWN_AFTER_MILLISECONDS = 1000
ONCE_MILLISECONDS = 1500
"""Sentinel tries a lost connection again once a second: sooner than that, it now and then takes the
new master for dead as well, and a second failover would blur what is measured after the first."""
FAILOVER_TIMEOUT_MILLISECONDS = 10_000
"""Sentinel leaves replicas alone for so long that are not where it has sent them."""
STALL_SECONDS, SHORT_STALL_SECONDS = 3.0, 0.5
LOGOUTS = 20
"""While it stalls, of sessions with which nothing else is done; half of them at each node."""
LOOK_SECONDS = 0.05

REPEATED_SECONDS = 2.0
"""From the moment when there is a new master until no node accepts what was logged out."""
RETURN_SECONDS = 40.0
"""Until a killed server is a replica: Sentinel leaves it a master for 8 s and more."""


def play(short: bool) -> Iterator[Bar]:
    if short:
        yield from uvloop.run(_stalls())
        return
    for replicas, kills in KILLS.items():
        yield from uvloop.run(_kills(replicas, kills))
        yield from uvloop.run(_stall(replicas, short))


async def _stalls() -> list[Bar]:
    """At once, to save time."""
    return [*chain(*await asyncio.gather(*(_stall(replicas, True) for replicas in KILLS)))]


@dataclass(frozen=True)
class Failover:
    """When the master was killed, and when all Sentinels named another, on the monotonic clock."""

    killed: float
    named: float


class ReplicationLink:
    """What replicas connect to instead of their master; ``flows``: cleared, nothing comes through
    any more, in either direction, and no connection ends."""

    def __init__(self, master_port: int) -> None:
        self._master_port = master_port
        self.flows = asyncio.Event()
        self.flows.set()
        self._pumps: set[asyncio.Task[None]] = set()

    async def open(self) -> int:
        """Its port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pumps.add(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        master = await asyncio.open_connection("127.0.0.1", self._master_port)
        await asyncio.gather(self._pump(reader, master[1]), self._pump(master[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self.flows.wait()
                writer.write(data)
            await self.flows.wait()
        finally:
            writer.close()

    async def close(self) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


class Deployment:
    """Redis, the nodes, and traffic on them."""

    def __init__(self, redis: RedisSentinels, ports: list[int]) -> None:
        self.redis = redis
        self.traffic = Traffic(ports)

    async def fail_over(self) -> Failover:
        """Kill the master, and start it again when there is another."""
        (master,) = self.redis.named()
        await asyncio.to_thread(self.redis.servers[master].stop, signal.SIGKILL)
        killed = time.monotonic()

        def replaced() -> bool:
            return master not in self.redis.named()

        await asyncio.to_thread(wait_until, replaced, "the Sentinels to name another master", 30)
        named = time.monotonic()
        await asyncio.to_thread(self.redis.servers[master].start)
        return Failover(killed, named)

    async def replicated(self) -> None:
        """Until all replicas have what the master has."""

        def replicated() -> bool:
            return self.redis.replicated(*self.redis.named())

        await asyncio.to_thread(wait_until, replicated, "the replicas", RETURN_SECONDS)


@asynccontextmanager
async def _deployed(
    replicas: int, short: bool, down_after_milliseconds: int
) -> AsyncIterator[Deployment]:
    with ExitStack() as stack:
        redis = RedisSentinels(
            down_after_milliseconds=down_after_milliseconds,
            failover_timeout_milliseconds=FAILOVER_TIMEOUT_MILLISECONDS,
        )
        await asyncio.to_thread(stack.enter_context, redis)
        services = [
            Service(SESIONES_REDIS_URL=redis.url, **settings(replicas, short)) for _ in range(2)
        ]
        for service in services:
            await asyncio.to_thread(stack.enter_context, service)
        deployment = Deployment(redis, [service.port for service in services])
        yield deployment
        deployment.traffic.close()


async def _kills(replicas: int, kills: int) -> list[Bar]:
    failovers: list[Failover] = []
    async with _deployed(replicas, False, DOWN_AFTER_MILLISECONDS) as deployment:
        traffic = deployment.traffic

        async def fail_over() -> None:
            await asyncio.sleep(SECONDS / 10)
            failovers.append(await deployment.fail_over())

        for number in range(1, kills + 1):
            await deployment.replicated()
            failing = asyncio.create_task(fail_over())
            label = f"sentinel, WAIT_REPLICAS={replicas}, kill {number} of {kills}"
            await traffic.run(RATE, SECONDS, label)
            await failing
        meanwhile, traffic.wrong = traffic.wrong, defaultdict(set)
        await traffic.verify(traffic.clients[0])
    gaps = [traffic.longest_gap(each.killed, each.killed + SECONDS) for each in failovers]
    title = f"WAIT_REPLICAS={replicas}, master killed"
    return [
        Bar(
            f"{title}: acknowledged writes stop for at most {MAY_STOP_SECONDS:.0f} s",
            f"{_range(gaps)} in {kills} kills, {_range([f.named - f.killed for f in failovers])} "
            "of it until all Sentinels named another",
            max(gaps) <= MAY_STOP_SECONDS,
        ),
        answered(title, traffic),
        *losses(title, replicas, traffic, meanwhile, [each.killed for each in failovers]),
    ]


class _Logouts:
    """Sessions that are logged out at one node or the other, and who still accepts them."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self._tokens: dict[str, Client] = {}
        """And where each is logged out."""
        self.accepted_at = {True: 0.0, False: 0.0}
        """When a session that had been logged out was last accepted, on the monotonic clock: where
        that had been, and elsewhere."""

    async def log_in(self) -> None:
        for number in range(LOGOUTS):
            client = self._clients[number % len(self._clients)]
            body = {"ID_Usuario": 10_000 + number, "Dispositivo": "laptop"}
            while (reply := await client.ask("POST", "/sesiones", body=body)).status != 201:
                pass  # not confirmed in time
            self._tokens[orjson.loads(reply.body)["Token_Sesion"]] = client

    async def log_out(self) -> Counter[int]:
        """The statuses of the answers."""
        replies = [
            await client.ask("DELETE", f"/sesiones/logout?Token_Sesion={token}", token)
            for token, client in self._tokens.items()
        ]
        return Counter(reply.status for reply in replies)

    async def watch(self) -> None:
        async def look(client: Client, token: str) -> None:
            if (await client.ask("GET", "/sesiones/self", token)).status == 200:
                self.accepted_at[client is self._tokens[token]] = time.monotonic()

        while True:
            pairs = [(client, token) for client in self._clients for token in self._tokens]
            await asyncio.gather(*(look(*pair) for pair in pairs))
            await asyncio.sleep(LOOK_SECONDS)


async def _stall(replicas: int, short: bool) -> list[Bar]:
    """The master goes on, but its replicas get nothing from it; then it is killed."""
    rate, seconds = (SHORT_RATE, SHORT_STALL_SECONDS) if short else (RATE, STALL_SECONDS)
    label = f"sentinel, WAIT_REPLICAS={replicas}, replication"
    async with _deployed(replicas, short, ONCE_MILLISECONDS) as deployment:
        traffic, redis = deployment.traffic, deployment.redis
        (master,) = redis.named()
        link = ReplicationLink(master)
        port = await link.open()
        for replica in redis.clients.keys() - {master}:
            await asyncio.to_thread(redis.clients[replica].replicaof, "127.0.0.1", str(port))
        await deployment.replicated()
        await traffic.run(rate, seconds, f"{label} flows")
        logouts = _Logouts(traffic.clients)
        await logouts.log_in()
        await deployment.replicated()

        link.flows.clear()
        stalled = time.monotonic()
        stalling = asyncio.create_task(traffic.run(rate, seconds, f"{label} stalls"))
        statuses = await logouts.log_out()
        await stalling
        events = [event for event in traffic.events if event.at >= stalled]
        # What a node could not even ask for is as live as ever.
        unconfirmed = await _refused(traffic.clients[:1], traffic.unconfirmed)

        watching = asyncio.create_task(logouts.watch())
        running = asyncio.create_task(
            traffic.run(rate, seconds + REPEATED_SECONDS, f"{label} stalls, master killed")
        )
        failover = await deployment.fail_over()
        await running
        await asyncio.sleep(failover.named + REPEATED_SECONDS - time.monotonic())
        watching.cancel()
        await link.close()
        meanwhile, traffic.wrong = traffic.wrong, defaultdict(set)
        for client in traffic.clients:
            await traffic.verify(client)
        accepted = unconfirmed - await _refused(traffic.clients, unconfirmed)
    writes = [event for event in events if event.operation in WRITES]
    checks = [event for event in events if event.operation not in WRITES]
    lost = meanwhile.pop(LOST, set()) | traffic.wrong.pop(LOST, set())
    overwritten = traffic.wrong.pop(OVERWRITTEN, set())
    at_once = logouts.accepted_at[True] == 0
    late = max(logouts.accepted_at[False] - failover.named, 0)
    title = f"WAIT_REPLICAS={replicas}, replication stalled"
    checked = Bar(
        f"{title}: checks go on as ever",
        f"{counted(checks)}; the slowest in {slowest(checks):.2f} s",
        all(event.status in (200, 401) for event in checks),
    )
    ended = Bar(
        f"{title}, then the master killed: what was logged out, acknowledged or not, is refused at "
        f"once by the node that was told, and by all {REPEATED_SECONDS:.0f} s after Sentinel names "
        "another",
        f"by its own node {'at once' if at_once else 'LATER'}, by the other after {late:.1f} s; "
        f"{words(traffic.wrong)}; of {len(unconfirmed)} unconfirmed ones {len(accepted)} accepted",
        at_once and late < REPEATED_SECONDS and not traffic.wrong and not accepted,
    )
    if not replicas:
        early = sum(traffic.created_at[token] < stalled for token in lost)
        return [
            checked,
            ended,
            Bar(
                f"{title}, then the master killed: what was acknowledged meanwhile is lost, and "
                "found to be",
                f"{len(lost)} sessions, {early} of them from before; {len(overwritten)} PUTs",
                len(lost) > 0 and not early,
            ),
        ]
    return [
        checked,
        Bar(
            f"{title}: every create, PUT and logout is a 503, within {MAY_TAKE_SECONDS} s",
            f"{counted(writes)} (401, 404: ended by another logout meanwhile); the slowest in "
            f"{slowest(writes):.2f} s",
            all(event.status in (401, 404, 503) for event in writes)
            and statuses.keys() == {503}
            and (short or slowest(writes) <= MAY_TAKE_SECONDS),
        ),
        ended,
        Bar(
            f"{title}, then the master killed: no acknowledged create or PUT lost",
            f"{len(lost)} of {traffic.known()['created']:,} sessions, {len(overwritten)} PUTs; "
            f"meanwhile {words(meanwhile)}",
            not lost and not overwritten and not meanwhile,
        ),
    ]


async def _refused(clients: Sequence[Client], tokens: Iterable[str]) -> set[str]:
    """Those of the tokens that all the nodes refuse."""
    refused = set(tokens)
    for client, token in product(clients, refused.copy()):
        if (await client.ask("GET", "/sesiones/self", token)).status != 401:
            refused.discard(token)
    return refused


def _range(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s"
