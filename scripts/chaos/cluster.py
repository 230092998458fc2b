"""A Cluster of three masters with a replica each, two nodes of the service: a master is killed
under load, and then 1,000 slots move to another.

Not both at once: with Redis 7.0 a replica that takes over does not know which slots are moving.
"""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

import uvloop
from redis.crc import key_slot

from scripts.chaos import Bar
from scripts.chaos.failover import MAY_STOP_SECONDS, answered, counted, losses, settings, slowest
from scripts.chaos.traffic import WRITES, Traffic, words
from scripts.redis_server import RedisCluster
from sesiones import tokens
from tests.service import Service, comes_true

RATE, SHORT_RATE = 2000, 300
SECONDS, SHORT_SECONDS = 15, 4
USERS, SHORT_USERS = 3000, 200
SLOTS, SHORT_SLOTS = 1000, 30


def play(short: bool) -> Iterator[Bar]:
    for replicas in (1,) if short else (0, 1):
        yield from uvloop.run(_play(replicas, short))


async def _play(replicas: int, short: bool) -> list[Bar]:
    users = SHORT_USERS if short else USERS
    with ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster(3, 3))
        variables = settings(replicas, short)
        services = [Service(SESIONES_REDIS_URL=cluster.url, **variables) for _ in range(2)]
        traffic = Traffic([stack.enter_context(each).port for each in services], users)
        bars = [
            *await _kill(cluster, traffic, replicas, short),
            *await _move(cluster, traffic, users, replicas, short),
        ]
        traffic.close()
    return bars


async def _kill(cluster: RedisCluster, traffic: Traffic, replicas: int, short: bool) -> list[Bar]:
    rate, seconds = (SHORT_RATE, SHORT_SECONDS) if short else (RATE, SECONDS)
    victim = cluster.master_ports[0]
    replica = list(cluster.servers)[len(cluster.master_ports)]
    theirs = {slot for slot in range(16384) if cluster.owner(slot) == victim}

    async def fail_over() -> tuple[float, float]:
        await asyncio.sleep(seconds / 10)
        await asyncio.to_thread(cluster.servers[victim].stop, signal.SIGKILL)
        killed = time.monotonic()

        def promoted() -> bool:
            return bool(cluster.clients[replica].info("replication")["role"] == "master")

        if not await asyncio.to_thread(comes_true, promoted, 30):
            raise RuntimeError("the replica does not take over")
        took_over = time.monotonic()
        await asyncio.to_thread(cluster.servers[victim].start)
        return killed, took_over

    failing = asyncio.create_task(fail_over())
    await traffic.run(rate, seconds, f"cluster, WAIT_REPLICAS={replicas}, master killed")
    killed, took_over = await failing
    await asyncio.to_thread(cluster.wait, cluster.in_sync)
    meanwhile, traffic.wrong = traffic.wrong, defaultdict(set)
    await traffic.verify(traffic.clients[0])
    shard = {b for e in traffic.events if key_slot((b := e.bucket).encode()) in theirs}
    others = [event for event in traffic.events if event.bucket not in shard]
    gap = traffic.longest_gap(killed, killed + seconds, shard)
    title = f"WAIT_REPLICAS={replicas}, master killed"
    bars = [
        Bar(
            f"{title}: acknowledged writes of its shard stop for at most {MAY_STOP_SECONDS:.0f} s",
            f"{gap:.1f} s, {took_over - killed:.1f} s of it until its replica took over",
            short or gap <= MAY_STOP_SECONDS,
        ),
        Bar(
            f"{title}: the other shards see no error",
            f"{counted(others)}; the slowest in {slowest(others):.2f} s",
            all(event.status not in (0, 503) for event in others),
        ),
        answered(title, traffic.events),
        *losses(title, replicas, traffic, meanwhile, [killed]),
    ]
    return bars
