"""A Cluster of three masters with a replica each, two nodes of the service: a master is killed
under load, and then 1,000 slots move to another.

Not both at once: with Redis 7.0 a replica that takes over does not know which slots are moving.
"""

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence

import uvloop
from redis.crc import key_slot

from scripts.chaos import Bar, Trial, trial
from scripts.chaos.failover import MAY_STOP_SECONDS, answered, losses, settings
from sesiones import tokens
from tests.harness.redis_server import RedisCluster, wait_until
from tests.harness.service import Service
from tests.harness.traffic import WRITES, Event, counted, slowest, words

RATE, SHORT_RATE = 2000, 300
SECONDS, SHORT_SECONDS = 15, 4
USERS, SHORT_USERS = 2200, 200
SLOTS, SHORT_SLOTS = 1000, 30


def play(short: bool) -> Iterator[Bar]:
    # On a busy machine a replica may well take more than the 100 ms that a write waits for it.
    for replicas in (0,) if short else (0, 1):
        yield from uvloop.run(_play(replicas, short))


async def _play(replicas: int, short: bool) -> list[Bar]:
    users = SHORT_USERS if short else USERS
    nodes = [Service(**settings(replicas, short)) for _ in range(2)]
    async with trial(RedisCluster(3, 3), *nodes, users=users) as cluster:
        slots = {_slot(tokens.user_bucket(user)) for user in range(1, users + 1)}
        return [
            *await _kill(cluster, replicas, short),
            *await _move(cluster, slots, replicas, short),
        ]


def _slot(bucket: str) -> int:
    return key_slot(bucket.encode())


async def _kill(this: Trial[RedisCluster], replicas: int, short: bool) -> list[Bar]:
    cluster, traffic = this.redis, this.traffic
    rate, seconds = (SHORT_RATE, SHORT_SECONDS) if short else (RATE, SECONDS)
    victim, *_ = cluster.master_ports
    replica = list(cluster.servers)[len(cluster.master_ports)]
    theirs = range(16384 // len(cluster.master_ports))

    async def fail_over() -> tuple[float, float]:
        await asyncio.to_thread(cluster.servers[victim].stop, signal.SIGKILL)
        killed = time.monotonic()

        def promoted() -> bool:
            return bool(cluster.clients[replica].info("replication")["role"] == "master")

        await asyncio.to_thread(wait_until, promoted, "the replica to take over", 30)
        took_over = time.monotonic()
        await asyncio.to_thread(cluster.servers[victim].start)
        return killed, took_over

    label = f"cluster, WAIT_REPLICAS={replicas}, master killed"
    _, ((killed, took_over),) = await this.run(label, rate, seconds, fail_over, after=seconds / 10)
    await asyncio.to_thread(cluster.wait, cluster.in_sync)
    meanwhile = traffic.take_wrong()
    await traffic.verify()
    buckets = {event.bucket for event in traffic.events if _slot(event.bucket) in theirs}
    others = [event for event in traffic.events if event.bucket not in buckets]
    gap = traffic.longest_gap(killed, killed + seconds, buckets)
    title = f"WAIT_REPLICAS={replicas}, master killed"
    return [
        Bar(
            f"{title}: acknowledged writes of its shard stop for at most {MAY_STOP_SECONDS:.0f} s",
            f"{gap:.1f} s, {took_over - killed:.1f} s of it until its replica took over",
            short or gap <= MAY_STOP_SECONDS,
        ),
        _untouched(f"{title}: the other shards see no error", others),
        *([] if short else [answered(title, traffic)]),
        *losses(title, replicas, traffic, meanwhile, [killed]),
    ]


async def _move(
    this: Trial[RedisCluster], slots: set[int], replicas: int, short: bool
) -> list[Bar]:
    cluster, traffic = this.redis, this.traffic
    rate, seconds = (SHORT_RATE, SHORT_SECONDS / 2) if short else (RATE, SECONDS)
    # Nodes that move slots to each other at once may lose some: all go to one.
    target = cluster.master_ports[-1]
    owners = {slot: cluster.owner(slot) for slot in slots}
    chosen = [slot for slot, owner in owners.items() if owner != target]
    chosen = chosen[: SHORT_SLOTS if short else SLOTS]
    keys = 0

    def move() -> float:
        nonlocal keys
        begun = time.monotonic()
        keys = sum(cluster.move_slot(slot, owners[slot], target) for slot in chosen)
        return time.monotonic() - begun

    traffic.take_wrong()
    label = f"cluster, WAIT_REPLICAS={replicas}, slots move"
    events, (took,) = await this.run(label, rate, seconds, lambda: asyncio.to_thread(move))
    await traffic.verify()
    moved = [event for event in events if _slot(event.bucket) in chosen]
    others = [event for event in events if _slot(event.bucket) not in chosen]
    checks = [event for event in moved if event.operation not in WRITES]
    writes = [event for event in moved if event.operation in WRITES]
    title = f"WAIT_REPLICAS={replicas}, {len(chosen):,} slots moved"
    return [
        _untouched(f"{title}: the other slots see no error", others),
        _untouched(f"{title}: their checks see no error", checks),
        Bar(
            f"{title}: no answer is wrong; a write may be a 503",
            f"{words(traffic.wrong)}; {keys:,} keys in {took:.1f} s; writes {counted(writes)}",
            not traffic.wrong and all(event.status for event in writes),
        ),
    ]


def _untouched(promise: str, events: Sequence[Event]) -> Bar:
    return Bar(
        promise,
        f"{counted(events)}; the slowest in {slowest(events):.2f} s",
        all(event.status not in (0, 503) for event in events),
    )
