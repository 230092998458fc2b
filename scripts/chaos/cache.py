"""The near-cache while everything fails that it relies on: how late does a node still accept a
session that has ended, or show one as it was before a change?

Three nodes, two of them with workers, answer checks of a few hot sessions, many of them from
memory, while the sessions are changed, ended in every way that there is, and expire. Meanwhile
subscriptions are killed, swallowed and overrun, Redis and nodes are paused, and masters are lost.
Writes are acknowledged when a replica has them, where there is one, because the scenario is about
what the cache does, not about what a failover loses.
"""

import asyncio
import math
import os
import signal
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop
from redis.crc import key_slot

from scripts.chaos import Bar
from scripts.chaos.failover import fail_over
from scripts.command_line import show
from sesiones import tokens
from tests.harness.faults import client as redis_client
from tests.harness.faults import hung
from tests.harness.hot_traffic import HotTraffic, Staleness
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer, wait_until
from tests.harness.relay import Filter, Relay
from tests.harness.service import Service, children

BOUND_SECONDS = 1.0
"""Within which every node refuses what has ended."""
START_SECONDS = 30.0
RATE, SHORT_RATE = 2600, 400
"""Checks a second."""
WRITES, SHORT_WRITES = 40, 40
USERS, SHORT_USERS = 60, 10
CHECKS = {"single server": 560_000, "Sentinel": 220_000, "Cluster": 220_000}
"""Of each kind of deployment, however long they take. The short form plays each fault once."""
CALM_RATE = 500
"""Before the faults. The lag is measured then, without what a busy machine would add."""
CALM_SECONDS, SHORT_CALM_SECONDS = 20.0, 1.0
HOLD_SECONDS, SHORT_HOLD_SECONDS = 2.0, 1.2
"""How long a fault lasts: longer than the bound."""
REST_SECONDS, SHORT_REST_SECONDS = 3.0, 0.3
"""After a fault, for entries to be made again."""
SHORT_CHECKS_MIN = 1500
HITS_MIN, SHORT_HITS_MIN = 0.4, 0.05
"""The share of the checks that must come from memory, or the bars say nothing about it."""
P50_MS, P99_MS = 2, 10
RETURN_SECONDS = 60.0
"""Until a killed server is a replica."""
SLOTS = 20
"""That are moved at once, of users with sessions."""
OUTPUT_BUFFER_BYTES = 100_000
LOOKUPS, HITS = "sesiones_cache_lookups_total", 'sesiones_cache_lookups_total{outcome="hit"}'
LEFT_OUT: set[str] = set()
"""Faults that are not played."""
FLAW = ""
"""A program that breaks the service, to see that the bars notice."""


@dataclass
class Deployment:
    """``url``: of the nodes; ``relayed_url``: of the third node. ``faults``: each breaks something
    of the nodes for so many seconds."""

    url: str
    relayed_url: str
    faults: "Callable[[list[Service], HotTraffic], dict[str, Fault]]"


Fault = Callable[[float], Awaitable[None]]


class Swallower:
    """Filters for a Relay that let the subscriptions of a node lose every byte from Redis, and no
    other connection. ``swallowed``: how many pieces were lost."""

    def __init__(self) -> None:
        self.on = False
        self.swallowed = 0

    def new_filter(self) -> Filter:
        subscribed = False

        def passed(piece: bytes) -> bytes:
            nonlocal subscribed
            subscribed = subscribed or b"\r\nsubscribe\r\n" in piece
            if subscribed and self.on:
                self.swallowed += 1
                return b""
            return piece

        return passed


def _single(stack: ExitStack) -> Deployment:
    server = stack.enter_context(RedisServer(port=str(free_port())))
    swallower = Swallower()
    relay = stack.enter_context(Relay(server.port, swallower.new_filter))

    def faults(nodes: list[Service], _: HotTraffic) -> dict[str, Fault]:
        return {
            "subscriptions killed": _in_thread(_kill_subscriptions, server),
            "subscription swallowed": _in_thread(_swallow, swallower),
            "output buffers overrun": _in_thread(_overrun_subscriptions, server),
            "Redis paused": _in_thread(_hang, server),
            "CLIENT PAUSE": _in_thread(_client_pause, server),
            "two nodes paused": _in_thread(_pause, nodes[:2]),
        }

    return Deployment(server.url, f"redis://127.0.0.1:{relay.port}", faults)


def _sentinel(stack: ExitStack) -> Deployment:
    redis = stack.enter_context(RedisSentinels(down_after_milliseconds=1500))

    def replicated() -> bool:
        return redis.replicated(*redis.named())

    async def kill(_: float) -> None:
        await asyncio.to_thread(wait_until, replicated, "the replicas", RETURN_SECONDS)
        await fail_over(redis)

    return Deployment(redis.url, redis.url, lambda *_: {"master killed": kill})


def _cluster(stack: ExitStack) -> Deployment:
    cluster = stack.enter_context(RedisCluster(3, 3))

    def faults(_: list[Service], traffic: HotTraffic) -> dict[str, Fault]:
        return {
            "slots moved": _in_thread(_move_slots, cluster, traffic),
            "master killed": _in_thread(_kill_master, cluster),
        }

    return Deployment(cluster.url, cluster.url, faults)


DEPLOYMENTS: dict[str, Callable[[ExitStack], Deployment]] = {
    "single server": _single,
    "Sentinel": _sentinel,
    "Cluster": _cluster,
}


def _in_thread(fault: Callable[..., None], *on: object) -> Fault:
    """``fault`` takes what it breaks, and for how many seconds."""
    return lambda seconds: asyncio.to_thread(fault, *on, seconds)


def _subscriptions(server: RedisServer) -> set[str]:
    with redis_client(server) as redis:
        return {each["id"] for each in redis.client_list(_type="pubsub")}


def _kill_subscriptions(server: RedisServer, seconds: float) -> None:
    """Again and again, as soon as they are back."""
    deadline = time.monotonic() + seconds
    with redis_client(server) as redis:
        while time.monotonic() < deadline:
            wait_until(lambda: bool(_subscriptions(server)), "subscriptions")
            redis.client_kill_filter(_type="pubsub")
            time.sleep(0.1)


def _overrun_subscriptions(server: RedisServer, _: float) -> None:
    """A message that is larger than the output buffers may be: Redis drops the subscriptions."""
    with redis_client(server) as redis:
        before = _subscriptions(server)
        (channel,) = redis.pubsub_channels()
        limit = redis.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        redis.config_set("client-output-buffer-limit", f"pubsub {OUTPUT_BUFFER_BYTES} 0 0")
        digests = OUTPUT_BUFFER_BYTES // 10 * ["x" * 22]
        redis.publish(channel, " ".join(digests))
        wait_until(lambda: not before & _subscriptions(server), "Redis to drop the subscriptions")
        redis.config_set("client-output-buffer-limit", limit)


def _swallow(swallower: Swallower, seconds: float) -> None:
    before = swallower.swallowed
    swallower.on = True
    wait_until(lambda: swallower.swallowed > before, "a message or the answer to a ping")
    time.sleep(seconds)
    swallower.on = False


def _hang(server: RedisServer, seconds: float) -> None:
    with hung(server):
        time.sleep(seconds)


def _client_pause(server: RedisServer, seconds: float) -> None:
    with redis_client(server) as redis:
        redis.client_pause(int(1000 * seconds))
        time.sleep(seconds)


def _pause(nodes: list[Service], seconds: float) -> None:
    """Of each its supervisor first, which would replace workers that hang."""
    pids = [node.process.pid for node in nodes if node.process is not None]
    pids = [each for pid in pids for each in (pid, *children(pid))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)


def _move_slots(cluster: RedisCluster, traffic: HotTraffic, _: float) -> None:
    """Slots of users that have sessions, each to another master."""
    masters = [port for port in cluster.servers if _is_master(cluster, port)]
    for slot in {key_slot(tokens.user_bucket(user).encode()) for user in traffic.users[:SLOTS]}:
        source = cluster.owner(slot)
        cluster.move_slot(slot, source, masters[(masters.index(source) + 1) % len(masters)])


def _is_master(cluster: RedisCluster, port: int) -> bool:
    return bool(cluster.clients[port].info("replication")["role"] == "master")


def _kill_master(cluster: RedisCluster, _: float) -> None:
    cluster.wait(cluster.in_sync, RETURN_SECONDS)
    replicas = {port for port in cluster.servers if not _is_master(cluster, port)}
    # A master that has lost its slots to its replica may stay one, and then none follows it.
    victim = min(cluster.clients[port].info("replication")["master_port"] for port in replicas)

    def replaced() -> bool:
        return any(_is_master(cluster, port) for port in replicas)

    cluster.servers[victim].stop(signal.SIGKILL)
    wait_until(replaced, "a replica to take over", 30)
    cluster.servers[victim].start()


def _metric(node: Service, name: str) -> float:
    """The sum over its labels, or over those that it does not name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def _nodes(stack: ExitStack, deployment: Deployment, replicas: int) -> list[Service]:
    nodes: list[Service] = []
    for url in deployment.url, deployment.url, deployment.relayed_url:
        node = Service(
            *(("--workers", "2") if nodes else ()),
            SESIONES_REDIS_URL=url,
            SESIONES_WAIT_REPLICAS=str(replicas),
            SESIONES_CACHE_SECONDS="60",
            SESIONES_TOUCH_SECONDS="60",
        )
        if FLAW:
            program = Path(stack.enter_context(TemporaryDirectory())) / "flawed.py"
            program.write_text(
                f"{FLAW}\nfrom sesiones.__main__ import main\n"
                "if __name__ == '__main__':\n    main()\n"
            )
            node.command = (sys.executable, str(program))
        nodes.append(node)
    with ThreadPoolExecutor() as threads:
        list(threads.map(stack.enter_context, nodes))
    wait_until(lambda: all(_workers_serve(node) for node in nodes), "the workers", START_SECONDS)
    return nodes


def _workers_serve(node: Service) -> bool:
    return node.log.count("startup complete") == (2 if node.flags else 1)


@dataclass
class Played:
    """What came of one kind of deployment. ``calm_lags``: see Staleness.lags."""

    kind: str
    calm_lags: list[float]
    faults: Counter[str]
    seen: Staleness
    hits: float

    def words(self) -> str:
        faults = ", ".join(f"{fault} {times} times" for fault, times in self.faults.items())
        return f"{self.kind}: {self.seen.checks:,} checks, {self.hits:.0%} from memory; {faults}"


def play(short: bool) -> Iterator[Bar]:
    yield from _bars(uvloop.run(_every_kind(short)), short)


async def _every_kind(short: bool) -> list[Played]:
    if short:  # at once, to save time
        return [*await asyncio.gather(*(_play(kind, short) for kind in DEPLOYMENTS))]
    return [await _play(kind, short) for kind in DEPLOYMENTS]


async def _play(kind: str, short: bool) -> Played:
    rate, writes = (SHORT_RATE, SHORT_WRITES) if short else (RATE, WRITES)
    calm_seconds = SHORT_CALM_SECONDS if short else CALM_SECONDS
    hold = SHORT_HOLD_SECONDS if short else HOLD_SECONDS
    rest = SHORT_REST_SECONDS if short else REST_SECONDS
    with ExitStack() as stack:
        deployment = await asyncio.to_thread(DEPLOYMENTS[kind], stack)
        replicas = 0 if kind == "single server" else 1
        nodes = await asyncio.to_thread(_nodes, stack, deployment, replicas)
        traffic = HotTraffic([node.port for node in nodes], SHORT_USERS if short else USERS)
        stack.callback(traffic.close)
        faults = deployment.faults(nodes, traffic)
        faults = {name: fault for name, fault in faults.items() if name not in LEFT_OUT}

        await traffic.run(min(rate, CALM_RATE), writes, calm_seconds, probe=True)
        calm_lags, traffic.seen.lags = traffic.seen.lags, []

        happened: Counter[str] = Counter()
        checks = 0 if short else CHECKS[kind]
        running = asyncio.create_task(traffic.run(rate, writes, math.inf))
        while not running.done() and (traffic.seen.checks < checks or len(happened) < len(faults)):
            name = list(faults)[happened.total() % len(faults)]
            show(f"cache, {kind}: {name}")
            await faults[name](hold)
            happened[name] += 1
            await asyncio.sleep(rest)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        show("")
        lookups = [await asyncio.to_thread(_metric, node, LOOKUPS) for node in nodes]
        hits = [await asyncio.to_thread(_metric, node, HITS) for node in nodes]
    return Played(kind, calm_lags, happened, traffic.seen, sum(hits) / sum(lookups))


def _bars(played: list[Played], short: bool) -> Iterator[Bar]:
    seen = [each.seen for each in played]
    checks = sum(each.checks for each in seen)
    least = SHORT_CHECKS_MIN if short else sum(CHECKS.values())
    hits = SHORT_HITS_MIN if short else HITS_MIN
    latest = max(each.latest_seconds for each in seen)
    yield Bar(
        f"no session is accepted that ended or changed more than {BOUND_SECONDS:.0f} s before, "
        "by any node",
        f"{sum(each.stale for each in seen):,} of {checks:,} checks were answered as before a "
        f"change, the latest {1000 * latest:.0f} ms after it was acknowledged; "
        + "; ".join(each.words() for each in played),
        latest <= BOUND_SECONDS and checks >= least and all(each.hits >= hits for each in played),
    )
    own = sum(each.own_stale for each in seen)
    yield Bar(
        "none at all by the node that ended or changed it, nor once it has expired",
        f"{own:,} checks",
        not own,
    )
    wrong = sum((each.wrong for each in seen), Counter())
    statuses = sum((each.statuses for each in seen), Counter())
    yield Bar(
        "nothing else is wrong",
        f"{wrong.total():,} answers; "
        + ", ".join(f"{count:,} x {what}" for what, count in sorted(statuses.items())),
        not wrong.total(),
    )
    lags = [*chain.from_iterable(each.calm_lags for each in played if each.kind == "single server")]
    if not short:
        percentiles = statistics.quantiles(lags, n=100)
        p50, p99 = 1000 * percentiles[49], 1000 * percentiles[98]
        yield Bar(
            f"without a fault, another node refuses an ended session within {P50_MS} ms at the "
            f"median and {P99_MS} ms at p99",
            f"{p50:.2f} ms and {p99:.2f} ms of {len(lags):,}, {1000 * max(lags):.1f} ms at most",
            p50 < P50_MS and p99 < P99_MS,
        )
