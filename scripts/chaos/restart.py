"""Redis is killed under load and starts again on its append-only file."""

import asyncio
import signal
import time
from collections.abc import Iterator

import uvloop

from scripts.chaos import Bar, trial
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.traffic import LOST, words

RATE, SECONDS = 1000, 10
SHORT_RATE, SHORT_SECONDS = 300, 1
MAY_LOSE_SECONDS = {"always": 0.0, "everysec": 1.0}
"""Of what was acknowledged before the kill, by appendfsync."""


def play(short: bool) -> Iterator[Bar]:
    for appendfsync, may_lose in MAY_LOSE_SECONDS.items():
        yield from uvloop.run(_kill(appendfsync, may_lose, short))


async def _kill(appendfsync: str, may_lose: float, short: bool) -> list[Bar]:
    rate, seconds = (SHORT_RATE, SHORT_SECONDS) if short else (RATE, SECONDS)
    async with trial(RedisServer(appendfsync=appendfsync), Service()) as restart:
        traffic = restart.traffic

        async def kill() -> float:
            at = time.monotonic()
            await asyncio.to_thread(restart.redis.stop, signal.SIGKILL)
            await asyncio.to_thread(restart.redis.start)
            return at

        label = f"restart, appendfsync {appendfsync}"
        _, (killed,) = await restart.run(label, rate, seconds, kill, after=seconds / 2)
        await traffic.verify()
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
