"""Which buckets a Cluster says may have another owner, on a simulated network."""

import asyncio
from collections.abc import Set

import pytest
from redis.crc import key_slot

from sesiones.redis_client.cluster import REFRESH_SECONDS_MAX, REFRESH_SECONDS_MIN
from sesiones.tokens import BUCKETS
from tests.harness.fake_redis import Network
from tests.harness.virtual_loop import run


def buckets(first: int, end: int) -> set[str]:
    """Those of the slots from ``first`` to before ``end``."""
    return {bucket for bucket in BUCKETS if first <= key_slot(bucket.encode()) < end}


def test_owner_changes_name_the_buckets_of_their_slots_and_no_others() -> None:
    async def play() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            network = Network(monkeypatch)
            commands = network.cluster()
            told: list[Set[str]] = []
            commands.on_owner_change(told.append)
            for key in "{a}", "{b}":  # one on each node
                assert await commands.execute("ECHO", 1, key, keys=[key]) == b"1"
            assert told == [BUCKETS]  # the first map
            assert 0 < len(buckets(0, 8192)) < len(BUCKETS)
            # The connection to a node is lost.
            network.nodes[0].wires[-1].lose()
            await asyncio.sleep(REFRESH_SECONDS_MIN)
            assert told[1:] == [buckets(0, 8192)]
            # Slots have another master.
            network.boundary = 8000
            await asyncio.sleep(2 * REFRESH_SECONDS_MAX)
            assert told[2:] == [buckets(8000, 8192)]
            await commands.aclose()

    run(play)
