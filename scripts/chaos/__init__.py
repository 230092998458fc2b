"""What the service does on its worst day, scenario by scenario, against bars.

A scenario is a module with one function, ``play(short)``: it breaks something under load (a Trial),
compares what the service had acknowledged with what is true afterwards, and yields a Bar for each
promise as soon as it is measured. The short form takes seconds, as in the test suite, and leaves
out what says nothing on a busy machine. An exception means that nothing could be measured.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tests.harness.service import Service
from tests.harness.traffic import Event, Traffic


@dataclass(frozen=True)
class Bar:
    """A promise, what was measured (in words, with units), and whether that keeps it."""

    promise: str
    measured: str
    met: bool


class NotInstalledError(Exception):
    """A program that a scenario needs, and how to get it."""


class _HasUrl(Protocol):
    @property
    def url(self) -> str: ...


Redis = TypeVar("Redis", bound=_HasUrl)
Done = TypeVar("Done")


@dataclass(frozen=True)
class Trial(Generic[Redis]):
    """Redis, the nodes of the service on it, and traffic on the nodes."""

    redis: Redis
    nodes: list[Service]
    traffic: Traffic

    async def run(
        self,
        label: str,
        rate: float,
        seconds: float,
        fault: Callable[[], Awaitable[Done]],
        *,
        after: float = 0.0,
        repeat: bool = False,
    ) -> tuple[list[Event], list[Done]]:
        """Traffic, and a fault in it after some seconds, once or until the traffic ends: what came
        of the requests, and what each call of ``fault`` returned."""
        running = asyncio.create_task(self.traffic.run(rate, seconds, label))
        await asyncio.sleep(after)
        done = [await fault()]
        while repeat and not running.done():
            done.append(await fault())
        return await running, done


@asynccontextmanager
async def trial(
    redis: AbstractContextManager[Redis],
    *nodes: Service,
    users: int = 200,
    spare: int = 0,
) -> AsyncIterator[Trial[Redis]]:
    """Starts Redis and the nodes, and ends them."""
    with ExitStack() as stack:
        started = await asyncio.to_thread(stack.enter_context, redis)
        for node in nodes:
            node.variables["SESIONES_REDIS_URL"] = started.url
            await asyncio.to_thread(stack.enter_context, node)
        traffic = Traffic([node.port for node in nodes], users, spare=spare)
        stack.callback(traffic.close)
        yield Trial(started, list(nodes), traffic)


def resident(pid: int) -> int:
    """The memory that the process has in use, in kB."""
    found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found  # a zombie has none
    return int(found[1])
