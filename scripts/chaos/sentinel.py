"""A master, two replicas, three Sentinels, two nodes of the service: the master is killed under
load, and once more while nothing is replicated."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import chain, product

import uvloop

from scripts.chaos import Bar, Trial, trial
from scripts.chaos.failover import (
    MAY_STOP_SECONDS,
    MAY_TAKE_SECONDS,
    Failover,
    answered,
    fail_over,
    losses,
    settings,
)
from tests.harness.client import Client
from tests.harness.redis_server import RedisSentinels, wait_until
from tests.harness.relay import Relay
from tests.harness.service import Service
from tests.harness.traffic import LOST, OVERWRITTEN, WRITES, Event, Traffic, counted, slowest, words

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


def _deployed(
    replicas: int, short: bool, down_after_milliseconds: int
) -> AbstractAsyncContextManager[Trial[RedisSentinels]]:
    redis = RedisSentinels(
        down_after_milliseconds=down_after_milliseconds,
        failover_timeout_milliseconds=FAILOVER_TIMEOUT_MILLISECONDS,
    )
    return trial(redis, *(Service(**settings(replicas, short)) for _ in range(2)))


async def _replicated(redis: RedisSentinels) -> None:
    """Until all replicas have what the master has."""

    def replicated() -> bool:
        return redis.replicated(*redis.named())

    await asyncio.to_thread(wait_until, replicated, "the replicas", RETURN_SECONDS)


async def _kills(replicas: int, kills: int) -> list[Bar]:
    failovers: list[Failover] = []
    async with _deployed(replicas, False, DOWN_AFTER_MILLISECONDS) as sentinel:
        traffic, redis = sentinel.traffic, sentinel.redis
        for number in range(1, kills + 1):
            await _replicated(redis)
            label = f"sentinel, WAIT_REPLICAS={replicas}, kill {number} of {kills}"
            _, failed_over = await sentinel.run(
                label, RATE, SECONDS, lambda: fail_over(redis), after=SECONDS / 10
            )
            failovers += failed_over
        meanwhile = traffic.take_wrong()
        await traffic.verify()
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
    """Sessions that are logged out at one node or the other, and the nodes that still accept
    them."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self._tokens: dict[str, Client] = {}
        """And where each is logged out."""
        self.accepted_at = {True: 0.0, False: 0.0}
        """When a session that had been logged out was last accepted, on the monotonic clock: by
        the node where that had been, and by the other."""

    async def log_in(self) -> None:
        for number in range(LOGOUTS):
            client = self._clients[number % len(self._clients)]
            self._tokens[await client.create(10_000 + number)] = client

    async def log_out(self) -> Counter[int]:
        """The statuses of the answers."""
        return Counter([await client.log_out(token) for token, client in self._tokens.items()])

    async def watch(self) -> None:
        async def look(client: Client, token: str) -> None:
            if await client.check(token) == 200:
                self.accepted_at[client is self._tokens[token]] = time.monotonic()

        while True:
            pairs = [(client, token) for client in self._clients for token in self._tokens]
            await asyncio.gather(*(look(*pair) for pair in pairs))
            await asyncio.sleep(LOOK_SECONDS)


@dataclass
class _Stall:
    """What was seen while replication stalled, and after the master was killed. ``events``: of the
    requests in the stall; ``statuses``: of its logouts; ``unconfirmed``: the sessions whose logout
    has an unknown outcome; ``accepted``: those of them that a node accepted in the end."""

    traffic: Traffic
    logouts: _Logouts
    stalled_at: float
    named_at: float
    events: list[Event]
    statuses: Counter[int]
    unconfirmed: set[str]
    accepted: set[str]
    meanwhile: dict[str, set[str]]


async def _stall(replicas: int, short: bool) -> list[Bar]:
    """The master goes on, but its replicas get nothing from it; then it is killed."""
    rate, seconds = (SHORT_RATE, SHORT_STALL_SECONDS) if short else (RATE, STALL_SECONDS)
    label = f"sentinel, WAIT_REPLICAS={replicas}, replication"
    async with _deployed(replicas, short, ONCE_MILLISECONDS) as sentinel:
        traffic, redis = sentinel.traffic, sentinel.redis
        (master,) = redis.named()
        with Relay(master) as relay:
            for replica in redis.clients.keys() - {master}:
                client = redis.clients[replica]
                await asyncio.to_thread(client.replicaof, "127.0.0.1", str(relay.port))
            await _replicated(redis)
            await traffic.run(rate, seconds, f"{label} flows")
            logouts = _Logouts(traffic.clients)
            await logouts.log_in()
            await _replicated(redis)

            relay.stall()
            stalled_at = time.monotonic()
            events, (statuses,) = await sentinel.run(
                f"{label} stalls", rate, seconds, logouts.log_out
            )
            # A session whose logout a node could not even ask for is as live as ever.
            unconfirmed = await _refused(traffic.clients[:1], traffic.unconfirmed)

            watching = asyncio.create_task(logouts.watch())
            _, (failover,) = await sentinel.run(
                f"{label} stalls, master killed",
                rate,
                seconds + REPEATED_SECONDS,
                lambda: fail_over(redis),
            )
            await asyncio.sleep(failover.named + REPEATED_SECONDS - time.monotonic())
            watching.cancel()
        meanwhile = traffic.take_wrong()
        for node in traffic.clients:
            await traffic.verify(node)
        accepted = unconfirmed - await _refused(traffic.clients, unconfirmed)
    seen = _Stall(
        traffic,
        logouts,
        stalled_at,
        failover.named,
        events,
        statuses,
        unconfirmed,
        accepted,
        meanwhile,
    )
    return list(_stall_bars(seen, replicas, short))


def _stall_bars(seen: _Stall, replicas: int, short: bool) -> Iterator[Bar]:
    title = f"WAIT_REPLICAS={replicas}, replication stalled"
    wrong, created_at = seen.traffic.wrong, seen.traffic.created_at
    writes = [event for event in seen.events if event.operation in WRITES]
    checks = [event for event in seen.events if event.operation not in WRITES]
    lost = seen.meanwhile.pop(LOST, set()) | wrong.pop(LOST, set())
    overwritten = wrong.pop(OVERWRITTEN, set())
    yield Bar(
        f"{title}: checks go on as ever",
        f"{counted(checks)}; the slowest in {slowest(checks):.2f} s",
        all(event.status in (200, 401) for event in checks),
    )
    if replicas:
        yield Bar(
            f"{title}: every create, PUT and logout is a 503, within {MAY_TAKE_SECONDS} s",
            f"{counted(writes)} (401, 404: ended by another logout meanwhile); the slowest in "
            f"{slowest(writes):.2f} s",
            all(event.status in (401, 404, 503) for event in writes)
            and seen.statuses.keys() == {503}
            and (short or slowest(writes) <= MAY_TAKE_SECONDS),
        )
    at_once = seen.logouts.accepted_at[True] == 0
    late = max(seen.logouts.accepted_at[False] - seen.named_at, 0)
    yield Bar(
        f"{title}, then the master killed: what was logged out, acknowledged or not, is refused at "
        f"once by the node that was told, and by all {REPEATED_SECONDS:.0f} s after Sentinel names "
        "another",
        f"by its own node {'at once' if at_once else 'LATER'}, by the other after {late:.1f} s; "
        f"{words(wrong)}; of {len(seen.unconfirmed)} unconfirmed ones {len(seen.accepted)} "
        "accepted",
        at_once and late < REPEATED_SECONDS and not wrong and not seen.accepted,
    )
    if replicas:
        yield Bar(
            f"{title}, then the master killed: no acknowledged create or PUT lost",
            f"{len(lost)} of {len(created_at):,} sessions, {len(overwritten)} PUTs; "
            f"meanwhile {words(seen.meanwhile)}",
            not lost and not overwritten and not seen.meanwhile,
        )
    else:
        early = sum(created_at[token] < seen.stalled_at for token in lost)
        yield Bar(
            f"{title}, then the master killed: what was acknowledged meanwhile is lost, and found "
            "to be",
            f"{len(lost)} sessions, {early} of them from before; {len(overwritten)} PUTs",
            len(lost) > 0 and not early,
        )


async def _refused(clients: Sequence[Client], tokens: Iterable[str]) -> set[str]:
    """Those of the tokens that all the nodes refuse."""
    refused = set(tokens)
    for client, token in product(clients, refused.copy()):
        if await client.check(token) != 401:
            refused.discard(token)
    return refused


def _range(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s"
