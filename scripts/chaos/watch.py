"""What an observer of Redis and of this process sees while the scenario churn plays."""

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence

import redis.asyncio

from scripts.chaos import resident
from sesiones import tokens
from sesiones.http.operations import Exposition
from sesiones.metrics import CREATED, ENDED
from sesiones.store import SessionStore
from tests.harness.redis_server import RedisServer

SAMPLE_SECONDS = 1.0
AUDIT_SECONDS = 1.0


class Watch:
    """What an observer of Redis and of this process sees."""

    def __init__(self, server: RedisServer, auditor: SessionStore) -> None:
        self.memory: list[tuple[float, float]] = []
        """Moments, and used_memory without the buffers of clients and of the append-only file."""
        self.rss: list[tuple[float, float]] = []
        self.looks = self.keys = 0
        self.faults: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()
        """Sessions that Redis deleted, and that it let expire, by its own events."""
        self.redis = redis.asyncio.Redis(unix_socket_path=str(server.socket))
        self._events = self.redis.pubsub()
        self._auditor = auditor

    async def subscribe(self) -> None:
        await self._events.subscribe(*(f"__keyevent@0__:{kind}" for kind in ("del", "expired")))
        await self._events.subscribe("end")

    async def listen(self) -> None:
        """Up to a message on the channel end."""
        async for message in self._events.listen():
            if message["type"] == "message":
                if message["channel"] == b"end":
                    return
                kind = message["channel"].decode().rpartition(":")[2]
                self.gone[kind] += b":h:" in message["data"]

    async def audit(self) -> None:
        while True:
            self.looks += 1
            async for keys, faults in self._auditor.operators().audit():
                self.keys += keys
                self.faults.update(what for _, what in faults)
            await asyncio.sleep(AUDIT_SECONDS)

    async def sample(self, since: float, until: float) -> None:
        while (now := time.monotonic()) < until:
            if now >= since:
                info = await self.redis.info("memory")
                buffers = info["mem_clients_normal"] + info["mem_aof_buffer"]
                self.memory.append((now, info["used_memory"] - buffers))
                self.rss.append((now, 1024 * resident(os.getpid())))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def counters(self) -> dict[int, int]:
        """By bucket, once everything else is gone."""
        keys = [key async for key in self.redis.scan_iter(match="*:n", count=1000)]
        values = await self.redis.mget(keys) if keys else []
        return {
            tokens.bucket_number(key.decode().partition("{")[2][:2]): int(value or 0)
            for key, value in zip(keys, values, strict=True)
        }

    async def left(self, until: float) -> int:
        """Keys that are no counters, when none is left or at that moment of the clock."""
        while True:
            keys = [key async for key in self.redis.scan_iter(count=1000)]
            left = sum(not key.endswith(b":n") for key in keys)
            if not left or time.time() > until:
                return left
            await asyncio.sleep(0.1)

    async def aclose(self) -> None:
        await self._events.aclose()  # type: ignore[no-untyped-call]
        await self.redis.aclose()


def rise(samples: Sequence[tuple[float, float]]) -> float:
    """From the first sample to the last, on the straight line that fits them all best."""
    slope, start = statistics.linear_regression(*zip(*samples, strict=True))
    (first, _), *_, (last, _) = samples
    return (start + slope * last) / (start + slope * first) - 1


def counted(stores: Sequence[SessionStore]) -> Counter[str]:
    """Their metrics: sessions created, and ended by the reason."""
    found: Counter[str] = Counter()
    for store in stores:
        for family in Exposition(store.metrics).collect():
            for sample in family.samples:
                if sample.name == f"{CREATED.name}_total":
                    found["created"] += int(sample.value)
                elif sample.name == f"{ENDED.name}_total":
                    found[sample.labels[ENDED.label]] += int(sample.value)
    return found
