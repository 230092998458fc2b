"""What a Cluster says of the owners of buckets, and what it asks nodes that own none any more or
that it has never asked; on a simulated network."""

import asyncio
from collections.abc import Set

import pytest
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.redis_client.cluster import REFRESH_SECONDS_MAX, REFRESH_SECONDS_MIN, Cluster
from sesiones.tokens import BUCKETS
from tests.harness.fake_redis import TIMEOUT_SECONDS, Network, simulated
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


def test_cluster_that_is_not_in_use_does_not_hold_back_the_expiry_of_tombstones() -> None:
    """Another event loop of the store ends sessions meanwhile."""

    async def play(_: Network, commands: Cluster) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(100)
        assert commands.last_answered_sent_at("eQ") == loop.time()
        assert await commands.execute("ECHO", 1, "{a}", keys=["{a}"]) == b"1"
        assert commands.last_answered_sent_at("eQ") < loop.time()
        await commands.aclose()
        await asyncio.sleep(100)
        assert commands.last_answered_sent_at("eQ") == loop.time()

    simulated(play, "cluster")()


def test_closed_cluster_opens_no_connection_to_a_master_that_it_has_never_asked() -> None:
    async def play() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            network = Network(monkeypatch)
            network.on_cluster = True
            commands = Cluster([network.nodes[0].address], {}, TIMEOUT_SECONDS)
            assert await commands.execute("ECHO", 1, "{b}", keys=["{b}"]) == b"1"
            await commands.aclose()
            for key in "{a}", "{b}":
                with pytest.raises(RedisConnectionError, match="closed"):
                    await commands.execute("ECHO", 1, key, keys=[key])
            assert [node.accepted for node in network.nodes] == [1, 0]

    run(play)


def test_command_on_a_node_that_was_dropped_leaves_no_connection_behind() -> None:
    """A scan goes on at a node that was a master when it began. The next refresh, at the moment at
    which the connection for that has opened, does not drop it with the command still to be sent."""

    async def play(network: Network, commands: Cluster) -> None:
        masters = await commands.masters()
        network.boundary = 0
        await asyncio.sleep(2 * REFRESH_SECONDS_MAX)
        (first, _) = network.nodes
        assert all(wire.is_closing() for wire in first.wires)
        assert await masters["node:1"]("PING") == b"PONG"
        assert not first.wires[-1].is_closing()
        await asyncio.sleep(2 * REFRESH_SECONDS_MAX)
        assert all(wire.is_closing() for wire in first.wires)

    simulated(play, "cluster")()
