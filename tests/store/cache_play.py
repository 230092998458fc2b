"""What happens on the simulated Cluster of cache_world.py: random steps, or one fault at a time."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sesiones.redis_client import cluster, connection, opening, single, subscription
from sesiones.store import batching, checks, near_cache, runner, timings, tombstones
from sesiones.tasks import background, retrieve_exception
from tests.harness.virtual_loop import CLOCK, VirtualLoop
from tests.store.cache_world import Link, Master, Pool, World

STEPS = 1000
CLOCKED = (
    *(connection, single, cluster, subscription),
    *(batching, checks, near_cache, runner, timings, tombstones),
)


async def play(world: World) -> None:
    """Random steps. Raises Violation."""
    choose, tasks = world.random, set[asyncio.Task[Any]]()

    def start(work: Any) -> None:
        task = background(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(retrieve_exception)

    def pause() -> None:
        """The process stops, while sessions end and change."""
        for token in [*world.tokens]:
            choose.choice((world.end_elsewhere, world.change_elsewhere))(token)
        world.loop.pause(choose.choice((0.5, 1.1, 3.0)))

    def change_all() -> None:
        for token in [*world.tokens]:
            world.change_elsewhere(token)

    faults: list[Callable[[], None]] = [
        pause,
        lambda: link().wire.lose(),
        lambda: link().stall(choose.uniform(0.1, 3)),
        lambda: link().hold(choose.uniform(0.1, 0.9), choose.uniform(0.5, 2)),
        lambda: setattr(link().wire, "swallows", True),
        lambda: choose.choice(world.masters).hang(2 * choose.random()),
        lambda: setattr(world, "boundary", choose.choice((1, 8192, 16383))),
        lambda: setattr(choose.choice(world.masters), "demoted", True),
    ]

    def link() -> Link:
        subscribed = [link for link in world.links() if link.subscribed]
        return choose.choice(subscribed or world.links())

    for _ in range(STEPS):
        node, store = choose.choice(world.stores)
        token = choose.choice(world.tokens)
        event = choose.random()
        if event < 0.8:
            start(store.find(token))
        elif event < 0.86:
            world.change_elsewhere(token)
        elif event < 0.92:
            world.end_elsewhere(token)
        elif event < 0.98:
            start(world.end_here(node, store, token))
        elif world.links():
            choose.choice(faults)()
            # What changes during a fault is what may be missed.
            world.loop.call_later(choose.uniform(0, 0.6), change_all)
        world.judge_all()
        if choose.random() < 0.7:
            await asyncio.sleep(choose.choice((0, 0.001, 0.01, 0.1)))
            world.judge_all()
        for master in world.masters:
            if master.demoted and choose.random() < 0.02:
                master.promote()
    for task in [*tasks]:
        task.cancel()


async def play_fault(world: World, fault: Callable[[World], float]) -> None:
    """Every session is in every memory when one fault begins; the sessions change so many seconds
    after that as the fault returns. Raises Violation."""
    caches = [cache for _, store in world.stores if (cache := store.near_cache()) is not None]

    def warm() -> bool:
        entries = [cache.get(token) for cache in caches for token in world.tokens]
        return all(entry is not None and entry.until > world.now + 2.5 for entry in entries)

    while not warm():
        finds = (store.find(token) for _, store in world.stores for token in world.tokens)
        await asyncio.gather(*finds, return_exceptions=True)
        await asyncio.sleep(0.05)
    world.judge_all()
    await asyncio.sleep(fault(world))
    for token in [*world.tokens]:
        world.change_elsewhere(token)
    for _ in range(200):
        world.judge_all()
        await asyncio.sleep(0.01)


def subscriptions(world: World, *masters: Master) -> list[Link]:
    every = (link for master in masters or world.masters for link in master.links)
    return [link for link in every if link.subscribed and not link.wire.is_closing()]


def answer_late_and_then_nothing(world: World) -> float:
    """The next ping is answered late, and nothing comes after that."""
    for link in subscriptions(world):
        link.hold(0.8, 5)
    return 0.3


def silence_one_master(world: World) -> float:
    world.bus_works = False
    for link in subscriptions(world, world.masters[0]):
        link.wire.swallows = True
    return 0


def demote_one_master(world: World) -> float:
    world.masters[0].demoted = True
    return 0


def lose_subscriptions(world: World) -> float:
    for link in subscriptions(world):
        link.wire.lose()
    return 0


def run(seed: int, playing: Callable[[World], Coroutine[Any, Any, None]] = play) -> int:
    """Play on a loop of its own. Return how many answers came from memory. Raises Violation."""
    loop = VirtualLoop()
    world = World(loop, seed)

    async def main() -> int:
        try:
            await playing(world)
        finally:
            for _, store in world.stores:
                await store.aclose()
        return world.hits

    with _simulated(world), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())


@contextmanager
def _simulated(world: World) -> Iterator[None]:
    async def resolve(*_: object) -> None:
        pass

    def pool(host: str, port: int, **_: object) -> Pool:
        return Pool(world, (host, port))

    with pytest.MonkeyPatch.context() as patch:
        for module in CLOCKED:
            patch.setattr(module, "time", CLOCK)
        for module in single, cluster:
            patch.setattr(module, "ConnectionPool", pool)
        patch.setattr(opening, "_resolve", resolve)
        yield
