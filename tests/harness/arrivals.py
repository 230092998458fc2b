"""An open loop: requests arrive at a rate, whether or not earlier ones were answered.

Arrivals are a Poisson process, as those of many users who know nothing of each other. A closed
loop, which sends the next request when the last one was answered, would send nothing while the
server stalls, and so measure one slow reply where many users waited (coordinated omission).
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator

from tests.harness.progress import Progress

BUSY_SECONDS = 0.001
"""For how long arrivals that are late are made up for before other tasks have their turn."""


class Arrivals:
    """``async for`` gives the moment of each arrival, on the monotonic clock, when it has come."""

    def __init__(
        self, rate: float, seconds: float, label: str = "", choose: random.Random | None = None
    ) -> None:
        self.late = 0.0
        """By how many seconds an arrival was given too late, at the most: on a busy machine the
        latencies that are counted from it are the machine's."""
        self._rate, self._seconds = rate, seconds
        self._progress = Progress(label, int(rate * seconds)) if label else None
        self._choose = choose or random.Random()

    async def __aiter__(self) -> AsyncIterator[float]:
        arrival = slept = now = time.monotonic()
        end = arrival + self._seconds
        while (arrival := arrival + self._choose.expovariate(self._rate)) < end:
            if arrival > now or now > slept + BUSY_SECONDS:
                await asyncio.sleep(max(arrival - now, 0))
                slept = now = time.monotonic()
            self.late = max(self.late, now - arrival)
            yield arrival
            now = time.monotonic()
            if self._progress:
                self._progress.step()
        await asyncio.sleep(end - time.monotonic())
        if self._progress:
            self._progress.end()
