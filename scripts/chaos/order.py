"""Users check, create and update at two nodes while Redis and the nodes fail in every way that
loses, delays or cuts replies: each answer must be of the user whose token it was."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import uvloop

from scripts.chaos import Bar, Trial, trial
from tests.harness.faults import client, hung
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer
from tests.harness.service import Service
from tests.harness.traffic import BACK, LOST, OVERWRITTEN, counted, words

RATE, SHORT_RATE = 800, 300
SECONDS, SHORT_SECONDS = 120.0, 3.0
"""Of each kind of deployment."""
ANSWERS_MIN, SHORT_ANSWERS_MIN = 20_000, 300
MAY_HAPPEN = {LOST, BACK, OVERWRITTEN}
"""When a server is killed that had not written to its disk or to its replica yet."""

Deployment = tuple[Callable[[], Any], Callable[[Any], Sequence[RedisServer]]]
"""Makes the Redis, and finds the servers of it that can fail now."""
DEPLOYMENTS: dict[str, Deployment] = {
    "single server": (lambda: RedisServer(port=str(free_port())), lambda redis: [redis]),
    "Sentinel": (
        RedisSentinels,
        lambda redis: [redis.servers[port] for port in redis.named()],
    ),
    "Cluster": (lambda: RedisCluster(3, 3), lambda redis: list(redis.servers.values())),
}


def play(short: bool) -> Iterator[Bar]:
    for kind, deployment in DEPLOYMENTS.items():
        yield uvloop.run(_play(kind, deployment, short))


async def _play(kind: str, deployment: Deployment, short: bool) -> Bar:
    make, servers = deployment
    rate, seconds = (SHORT_RATE, SHORT_SECONDS) if short else (RATE, SECONDS)
    least = SHORT_ANSWERS_MIN if short else ANSWERS_MIN
    nodes = [Service(SESIONES_REDIS_TIMEOUT="0.25") for _ in range(2)]
    async with trial(make(), *nodes) as order:
        faults = _Faults(order, servers)
        events, _ = await order.run(f"order, {kind}", rate, seconds, faults.next, repeat=True)
    wrong = {what: found for what, found in order.traffic.wrong.items() if what not in MAY_HAPPEN}
    happened = ", ".join(f"{fault} {times} times" for fault, times in sorted(faults.times.items()))
    answers = sum(event.status in (200, 201) for event in events)
    return Bar(
        f"{kind}: under faults, every answer is of the user whose token it was",
        f"{words(wrong)}; {counted(events)}; {happened}",
        not wrong and len(faults.times) == 4 and answers >= least,
    )


class _Faults:
    """One fault after the other; ``times``: how often each has happened."""

    def __init__(self, order: Trial[Any], servers: Callable[[Any], Sequence[RedisServer]]) -> None:
        self.times: Counter[str] = Counter()
        self._order, self._servers = order, servers

    async def next(self) -> None:
        await asyncio.sleep(random.uniform(0.05, 0.3))
        faults = {
            "connections killed": self._kill_connections,
            "service paused": lambda _: _hold(hung(random.choice(self._order.nodes))),
            "Redis paused": lambda server: _hold(hung(server)),
            "Redis killed": self._kill_redis,
        }
        name = list(faults)[self.times.total() % len(faults)]
        found = await asyncio.to_thread(self._servers, self._order.redis)
        if not found:  # the Sentinels name no master at this moment
            return
        server = random.choice(found)
        if server.is_running:
            await asyncio.to_thread(faults[name], server)
            self.times[name] += 1

    def _kill_connections(self, server: RedisServer) -> None:
        with client(server) as redis:
            redis.client_kill_filter(_type="normal", skipme=True)

    def _kill_redis(self, server: RedisServer) -> None:
        server.stop(signal.SIGKILL)
        time.sleep(random.uniform(0, 0.3))
        server.start()


def _hold(fault: AbstractContextManager[None]) -> None:
    with fault:
        time.sleep(random.uniform(0.05, 0.6))
