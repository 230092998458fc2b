"""Redis is killed under load and starts again on its append-only file."""

import asyncio
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from scripts.chaos import Bar
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.traffic import LOST, Traffic, words

RATE, SECONDS = 1000, 10
SHORT_RATE, SHORT_SECONDS = 300, 1
MAY_LOSE_SECONDS = {"always": 0.0, "everysec": 1.0}
"""Of what was acknowledged before the kill, by appendfsync."""


def play(short: bool) -> Iterator[Bar]:
    for appendfsync, may_lose in MAY_LOSE_SECONDS.items():
        yield from uvloop.run(_kill(appendfsync, may_lose, short))


async def _kill(appendfsync: str, may_lose: float, short: bool) -> list[Bar]:
    rate, seconds = (SHORT_RATE, SHORT_SECONDS) if short else (RATE, SECONDS)
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder), appendfsync=appendfsync) as redis,
        Service(SESIONES_REDIS_URL=redis.url) as service,
    ):
        traffic = Traffic([service.port])

        async def kill() -> float:
            await asyncio.sleep(seconds / 2)
            at = time.monotonic()
            await asyncio.to_thread(redis.stop, signal.SIGKILL)
            await asyncio.to_thread(redis.start)
            return at

        killing = asyncio.create_task(kill())
        await traffic.run(rate, seconds, f"restart, appendfsync {appendfsync}")
        killed = await killing
        await traffic.verify(traffic.clients[0])
        traffic.close()
    ages = [killed - traffic.created_at[token] for token in traffic.wrong.pop(LOST, ())]
    known = traffic.known()
    return [
        Bar(
            f"appendfsync {appendfsync}: no session lost that was acknowledged {may_lose:.0f} s or "
            "more before the kill",
            f"{len(ages)} of {known['created']:,} lost"
            + (f", the oldest acknowledged {max(ages):.2f} s before it" if ages else ""),
            all(0 < age <= may_lose for age in ages),
        ),
        Bar(
            f"appendfsync {appendfsync}: nothing else is wrong, no ended session accepted",
            f"{words(traffic.wrong)}; {known['ended']:,} ended",
            not traffic.wrong,
        ),
    ]
