"""The server's connections, on a simulated network."""

import asyncio
from collections.abc import Set

import pytest

from tests.redis_client.fakes import run
from tests.redis_client.network import TIMEOUT_SECONDS, Network


def test_answered_at_counts_a_lost_connection_until_its_listener_has_run() -> None:
    """Tombstones that a silent connection has kept must be there when its loss is told."""

    async def lose() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            network = Network(monkeypatch)
            commands = network.server()
            loop = asyncio.get_running_loop()
            told: list[float] = []

            def listener(_: Set[str]) -> None:
                told.append(commands.answered_at("ab"))

            commands.on_owner_change(listener)
            assert await commands.execute("ECHO", 1, "{a}") == b"1"
            answered_by = loop.time()
            network.nodes[0].silence(True)
            await asyncio.sleep(100 * TIMEOUT_SECONDS)
            assert len(told) == 1
            assert told[0] <= answered_by < loop.time() - 90 * TIMEOUT_SECONDS
            await commands.aclose()

    run(lose)
