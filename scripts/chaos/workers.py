"""Workers are told to stop or are killed, and whole nodes are told to stop, while requests come in
over connections that are kept alive. No request is sent twice: one that gets no answer, or a 5xx,
has failed.
"""

import asyncio
import itertools
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from scripts.chaos import Bar, Trial, trial
from sesiones.http.server import STOP_SECONDS
from tests.harness.client import Client
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.traffic import Event, words

WORKERS, RATE, SECONDS = 4, 1000, 110
SHORT_WORKERS, SHORT_RATE, SHORT_SECONDS = 2, 300, 1.0
KILL_SECONDS = 30
"""Of workers that are killed, and of whole nodes: those in the long form alone."""
WARM_SECONDS = 0.3
CONNECTIONS = 64
"""To each node, in use in turn."""


class Node(Service):
    """On the same port after a stop."""

    def __init__(self, workers: int, **variables: str) -> None:
        self._workers = workers
        flags = "--workers", str(workers), "--port", str(free_port())
        super().__init__(*flags, SESIONES_REDIS_TIMEOUT="4", **variables)

    def workers(self) -> list[int]:
        """Their process ids, the oldest first."""
        started = re.findall(r"Started server process \[(\d+)\]", self.log)
        return [int(pid) for pid in started if _is_running(int(pid))]

    async def started(self, times: int) -> None:
        """Until that many workers have begun to serve since the first start."""
        await _until(lambda: self.log.count("startup complete") >= times, 0.05)

    async def replace(self, number: signal.Signals) -> tuple[float, float, float]:
        """Signal the oldest worker: when that was, when it was gone, when another one served in
        its place; on the monotonic clock."""
        pid, times = self.workers()[0], self.log.count("startup complete")
        at = time.monotonic()
        os.kill(pid, number)
        await _until(lambda: not _is_running(pid), 0.001)
        await asyncio.sleep(0)  # the ends of its connections are known here by now
        gone = time.monotonic()
        await self.started(times + 1)
        return at, gone, time.monotonic()

    async def restart(self) -> float:
        """Stop the whole, and start it again: how long it took to end."""
        times, begun = self.log.count("startup complete"), time.monotonic()
        await asyncio.to_thread(self.stop)
        ended = time.monotonic()
        await asyncio.to_thread(self.start)
        await self.started(times + self._workers)
        return ended - begun


async def _until(condition: Callable[[], bool], every_seconds: float) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110, of other processes
            await asyncio.sleep(every_seconds)


def _is_running(pid: int) -> bool:
    """Whether any of its threads still has the sockets."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(stat.rpartition(")")[2].split()[0] not in "ZX" for stat in stats)


def _failures(events: list[Event]) -> str:
    """How many of them failed, and with which statuses."""
    counted = Counter(event.status for event in _failed(events))
    statuses = ", ".join(f"{status}: {n:,}" for status, n in counted.items())
    return f"{counted.total():,} of {len(events):,} failed{f' ({statuses})' if statuses else ''}"


def _failed(events: list[Event]) -> list[Event]:
    return [event for event in events if event.status == 0 or event.status >= 500]


def play(short: bool) -> Iterator[Bar]:
    yield from uvloop.run(_play(short))


async def _play(short: bool) -> list[Bar]:
    number, rate = (SHORT_WORKERS, SHORT_RATE) if short else (WORKERS, RATE)
    seconds, kill_seconds = (SHORT_SECONDS,) * 2 if short else (SECONDS, KILL_SECONDS)
    node = Node(number)
    async with trial(RedisServer(), node, spare=CONNECTIONS) as workers:
        await node.started(number)
        traffic = workers.traffic

        events, told = await workers.run(
            "workers, SIGTERM",
            rate,
            seconds,
            lambda: node.replace(signal.SIGTERM),
            after=WARM_SECONDS,
            repeat=True,
        )
        bars = [
            Bar(
                f"SIGTERM to each of {number} workers in turn: no request fails",
                f"{_failures(events)}, {len(told)} were told; gone in "
                f"{max(gone - at for at, gone, _ in told):.1f} s, replaced in "
                f"{max(back - at for at, _, back in told):.1f} s at the most",
                not _failed(events),
            )
        ]

        events, killed = await workers.run(
            "workers, SIGKILL",
            rate,
            kill_seconds,
            lambda: node.replace(signal.SIGKILL),
            after=WARM_SECONDS,
            repeat=True,
        )
        in_flight = [
            event
            for event in events
            if any(event.at < gone and at < event.at + event.seconds for at, gone, _ in killed)
        ]
        others = len(_failed(events)) - len(_failed(in_flight))
        bars.append(
            Bar(
                f"kill -9 of one of {number} workers: no request fails but those in flight on it",
                f"of those in flight on any worker {_failures(in_flight)}, of the rest {others} of "
                f"{len(events) - len(in_flight):,}; {len(killed)} were killed; {number} "
                f"served again in {max(back - at for at, _, back in killed):.1f} s at the most",
                not others,
            )
        )

        if not short:
            bars.append(await _stop_nodes(workers, node))

        await traffic.verify()
    return [*bars, Bar("every answer is right", words(traffic.wrong), not traffic.wrong)]


async def _stop_nodes(workers: Trial[RedisServer], node: Node) -> Bar:
    with Node(WORKERS, SESIONES_REDIS_URL=workers.redis.url) as other:
        await other.started(WORKERS)
        workers.traffic.clients.append(Client(other.port, CONNECTIONS))
        nodes = itertools.cycle([node, other])
        events, took = await workers.run(
            "workers, SIGTERM to a node",
            RATE,
            KILL_SECONDS,
            lambda: next(nodes).restart(),
            after=WARM_SECONDS,
            repeat=True,
        )
    return Bar(
        "SIGTERM to each of two nodes in turn, a refused connection tries the other: no "
        f"request fails, and it ends within {STOP_SECONDS} s",
        f"{_failures(events)}, {len(took)} were told; ended in {max(took):.1f} s at the most",
        not _failed(events) and max(took) < STOP_SECONDS,
    )
