"""The queues of checks: one for each node of a Cluster that has any."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from sesiones import tokens
from tests.harness.stores import store_on

pytestmark = pytest.mark.anyio


class Node:
    """The address of a node. A weak reference can point to it."""


class Nodes:
    """Commands on a Cluster whose only master changes. No token has a session."""

    batch_max, in_flight_max = 64, 2

    def __init__(self) -> None:
        self.master = Node()

    def node_of(self, bucket: str) -> Node:
        return self.master

    async def execute(
        self,
        *arguments: Any,
        keys: list[str],
        on_reply: Callable[[Any], Any] = lambda reply: reply,
        **_: Any,
    ) -> Any:
        await asyncio.sleep(0.01)
        return on_reply([arguments[-1], [*[None, None] * len(keys), 0, 0, []]])

    def connection(self, keys: list[str]) -> None:
        """None is open."""

    def on_owner_change(self, listener: object) -> None:
        """Nothing is lost."""

    async def aclose(self) -> None:
        """Nothing is open."""


async def test_node_that_has_left_the_cluster_is_not_kept() -> None:
    nodes = Nodes()
    store = store_on(nodes, timeout_seconds=1.0)
    seen: list[weakref.ref[Node]] = []
    for _ in range(5):
        checks = (store.find(tokens.make(user)) for user in range(100))
        assert await asyncio.gather(*checks) == [None] * 100
        seen.append(weakref.ref(nodes.master))
        nodes.master = Node()
    await asyncio.sleep(0.2)
    gc.collect()
    assert [node() for node in seen] == [None] * 5
    await store.aclose()


async def test_checks_of_a_node_share_a_queue_while_it_has_any() -> None:
    nodes = Nodes()
    store = store_on(nodes, timeout_seconds=1.0)
    out = most = 0
    really = nodes.execute

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal out, most
        out += 1
        most = max(most, out)
        try:
            return await really(*arguments, **options)
        finally:
            out -= 1

    nodes.execute = counted  # type: ignore[method-assign]
    for _ in range(30):  # longer than it takes to drop a queue without checks
        await asyncio.gather(*(store.find(tokens.make(user)) for user in range(300)))
    assert most == nodes.in_flight_max
    await store.aclose()
