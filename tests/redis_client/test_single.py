"""The server's connections, on a simulated network: what is late, silent, lost or too much."""

import asyncio
import contextlib
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones import tokens
from sesiones.redis_client.connection import IDLE_PING_SECONDS, SilentError
from sesiones.redis_client.single import Server, UnconfirmedError
from tests.harness.fake_redis import (
    LATENCY_SECONDS,
    TIMEOUT_SECONDS,
    Network,
    Wire,
    packed,
    simulated,
)


def now() -> float:
    return asyncio.get_running_loop().time()


def owner_changes(commands: Server) -> list[Any]:
    """What the commands tell of changes of owner from now on."""
    told: list[Any] = []
    commands.on_owner_change(told.append)
    return told


@simulated
async def test_reply_that_comes_byte_by_byte_is_read_whole(
    network: Network, commands: Server
) -> None:
    (node, _) = network.nodes
    replies = {b"A": b"*3\r\n$4\r\na\r\nb\r\n:-7\r\n*1\r\n$-1\r\n", b"B": b"+OK\r\n"}
    node.answer = lambda command, _: bytearray(replies[command[0]])
    node.piece = 1
    asked = await asyncio.gather(commands.execute("A"), commands.execute("B"))
    assert list(asked) == [[b"a\r\nb", -7, [None]], b"OK"]


@simulated
async def test_late_reply_drops_the_connection_with_all_that_wait(
    network: Network, commands: Server
) -> None:
    (node, _) = network.nodes
    assert await commands.execute("PING") == b"PONG"
    node.silence(True)
    begun = now()
    first = asyncio.create_task(commands.execute("PING"))
    await asyncio.sleep(0.4 * TIMEOUT_SECONDS)
    second = asyncio.create_task(commands.execute("PING"))
    for task in first, second:
        with pytest.raises(RedisConnectionError, match="no reply in"):
            await task
        # The second did not wait for a time of its own: its reply comes after the first's.
        assert now() - begun == pytest.approx(TIMEOUT_SECONDS, abs=0.01)
    node.silence(False)  # what the first connection is owed reaches no caller of the second one
    assert await asyncio.gather(*(commands.execute("PING") for _ in range(9))) == [b"PONG"] * 9
    assert node.accepted == 2


@simulated
async def test_late_reply_drops_the_connection_though_its_caller_was_cancelled(
    network: Network, commands: Server
) -> None:
    (node, _) = network.nodes
    assert await commands.execute("PING") == b"PONG"
    node.swallow()
    cancelled = asyncio.create_task(commands.execute("PING"))
    await asyncio.sleep(0.25 * TIMEOUT_SECONDS)
    cancelled.cancel()
    await asyncio.sleep(TIMEOUT_SECONDS)
    assert await commands.execute("PING") == b"PONG"
    assert node.accepted == 2


@simulated
async def test_silence_leaves_half_of_the_time_for_a_second_try(
    network: Network, commands: Server
) -> None:
    assert await commands.execute("PING") == b"PONG"
    lost = network.nodes[0].swallow()
    begun = now()
    kept = asyncio.create_task(commands.execute("PING"))
    with pytest.raises(SilentError):
        await commands.execute("PING", safe_to_repeat=True)
    assert now() - begun == pytest.approx(0.5 * TIMEOUT_SECONDS, abs=0.01)
    # New commands go to another connection, and what may not be repeated keeps its time.
    assert await commands.execute("PING", safe_to_repeat=True) == b"PONG"
    assert not kept.done()
    with pytest.raises(RedisConnectionError, match="no reply in"):
        await kept
    assert now() - begun == pytest.approx(TIMEOUT_SECONDS, abs=0.01)
    assert lost.swallowed == [[b"PING"], [b"PING"]]


@simulated
async def test_silent_idle_connection_is_noticed_without_traffic(
    network: Network, commands: Server
) -> None:
    told = owner_changes(commands)
    assert await commands.execute("PING") == b"PONG"
    lost = network.nodes[0].swallow()
    await asyncio.sleep(IDLE_PING_SECONDS + 2 * TIMEOUT_SECONDS)
    assert len(told) == 1
    assert lost.swallowed == [[b"TIME"]]


@simulated
async def test_last_answered_sent_at_is_when_the_answered_command_was_sent(
    network: Network, commands: Server
) -> None:
    """A paused process may read the reply long after that."""
    assert await commands.execute("PING") == b"PONG"
    (node, _) = network.nodes
    node.silence(True)
    sent_at = now()
    slow = asyncio.create_task(commands.execute("PING"))
    await asyncio.sleep(0.3 * TIMEOUT_SECONDS)
    node.silence(False)
    assert await slow == b"PONG"
    last_answered_sent_at = commands.last_answered_sent_at("eQ")
    assert last_answered_sent_at == pytest.approx(sent_at, abs=0.001)
    node.swallow()
    await asyncio.sleep(0.2 * TIMEOUT_SECONDS)
    assert commands.last_answered_sent_at("eQ") == last_answered_sent_at
    silent = asyncio.create_task(commands.execute("PING"))
    await asyncio.sleep(0.6 * TIMEOUT_SECONDS)
    # The connection that took over answers later, but the first one's owner may be another.
    assert await commands.execute("PING") == b"PONG"
    assert commands.last_answered_sent_at("eQ") == last_answered_sent_at
    with pytest.raises(RedisConnectionError):
        await silent
    await asyncio.sleep(0.01)
    assert commands.last_answered_sent_at("eQ") > last_answered_sent_at


@simulated
async def test_last_answered_sent_at_counts_a_lost_connection_until_its_listener_has_run(
    network: Network, commands: Server
) -> None:
    """Tombstones that a silent connection has kept must be there when its loss is told."""
    told: list[float] = []
    commands.on_owner_change(lambda _: told.append(commands.last_answered_sent_at("eQ")))
    assert await commands.execute("PING") == b"PONG"
    answered_by = now()
    network.nodes[0].silence(True)
    await asyncio.sleep(100 * TIMEOUT_SECONDS)
    assert len(told) == 1
    assert told[0] <= answered_by < now() - 90 * TIMEOUT_SECONDS


@simulated
async def test_only_the_loss_of_a_connection_that_has_answered_is_told(
    network: Network, commands: Server
) -> None:
    """Otherwise each attempt at a server that accepts and hangs up would replay all tombstones."""
    (node, _) = network.nodes
    told = owner_changes(commands)

    def hang_up(*_: object) -> bytes:
        node.wires[-1].lose()
        return b""

    answer, node.answer = node.answer, hang_up
    for _ in range(3):
        with pytest.raises(RedisConnectionError):
            await commands.execute("PING")
    assert told == []
    node.answer = answer
    node.cut_after(len(packed(b"PONG")))
    assert await commands.execute("PING") == b"PONG"
    await asyncio.sleep(0.01)
    assert told == [tokens.BUCKETS]


@pytest.mark.parametrize("kind", ["server", "sentinel_master", "cluster"])
@pytest.mark.parametrize("lost_after_seconds", [0.0, 0.5 * LATENCY_SECONDS, 1.5 * LATENCY_SECONDS])
def test_connection_lost_before_its_first_answer_is_forgotten(
    kind: str, lost_after_seconds: float
) -> None:
    """Otherwise it would hold back the expiry of every tombstone for good. The loss comes before
    the first command, before its reply, or while the Sentinels are asked about the server."""

    async def lose_each_connection(network: Network, commands: Any) -> None:
        accept = network.nodes[0].accept

        def accept_and_lose() -> Wire:
            wire = accept()
            asyncio.get_running_loop().call_later(lost_after_seconds, wire.lose)
            return wire

        network.nodes[0].accept = accept_and_lose  # type: ignore[method-assign]
        for _ in range(3):
            with contextlib.suppress(RedisConnectionError):
                await commands.execute("ECHO", 1, "{b}", keys=["{b}"])  # of the first node
            await asyncio.sleep(TIMEOUT_SECONDS)
        server = commands._servers["node", 1] if kind == "cluster" else commands
        assert server.last_answered_sent_at("eQ") == now()

    simulated(lose_each_connection, kind)()


@simulated
async def test_reply_of_no_command_drops_the_connection(network: Network, commands: Server) -> None:
    (node, _) = network.nodes
    node.answer = lambda *_: bytearray(b"+ONE\r\n+TWO\r\n")
    for connections in 1, 2, 3:  # each on a new connection: "TWO" is never the next one's reply
        assert await commands.execute("PING") == b"ONE"
        await asyncio.sleep(0.01)
        assert node.accepted == connections


@simulated
async def test_cancelled_caller_does_not_end_the_opening(
    network: Network, commands: Server
) -> None:
    (node, _) = network.nodes
    node.opening_seconds = 0.1
    tasks = [asyncio.create_task(commands.execute("PING")) for _ in range(50)]
    await asyncio.sleep(0.05)
    for task in tasks[:25]:  # the first of them began to open
        task.cancel()
    assert await asyncio.gather(*tasks[25:]) == [b"PONG"] * 25
    assert node.accepted == 1


@simulated
async def test_connection_whose_callers_were_all_cancelled_serves_the_next(
    network: Network, commands: Server
) -> None:
    (node, _) = network.nodes
    node.opening_seconds = 0.1
    task = asyncio.create_task(commands.execute("PING"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.sleep(0.1)
    assert await commands.execute("PING") == b"PONG"
    assert node.accepted == 1


@simulated
async def test_wait_that_is_answered_with_no_number_confirms_nothing(
    network: Network, commands: Server
) -> None:
    network.nodes[0].answer = lambda *_: b"OK"
    with pytest.raises(UnconfirmedError):
        await commands.execute("SET", "x", 1, replicas=1)


@simulated
async def test_writes_are_confirmed_after_every_task_of_the_loop_was_cancelled(
    network: Network, commands: Server
) -> None:
    """A program may cancel all of its tasks and go on."""
    network.nodes[0].answer = lambda command, _: 1 if command[0] == b"WAIT" else b"OK"
    for waits_in_flight in 0, 1:
        assert await commands.execute("SET", "x", 1, replicas=1) == b"OK"
        assert commands._connection is not None
        for _ in range(waits_in_flight):
            commands._connection.confirmed(1)
            await asyncio.sleep(0)
        commands._connection.confirmed(1)
        for _ in range(waits_in_flight):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.1)
    assert await commands.execute("SET", "x", 1, replicas=1) == b"OK"
