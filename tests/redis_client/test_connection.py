"""The connection to a real server: many callers on one, opened and closed. On a simulated network:
test_single.py."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator

import pytest
from redis import Redis
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from sesiones.redis_client import Commands, connect
from sesiones.sesion import StoreUnavailable
from tests.harness.fake_redis import serving
from tests.harness.records import client_ids
from tests.harness.redis_server import RedisServer
from tests.harness.service import comes_true
from tests.harness.stores import open_store


@pytest.fixture
async def commands(redis_server: RedisServer, redis: "Redis") -> AsyncIterator[Commands]:
    commands = connect(redis_server.url, 5)
    yield commands
    await commands.aclose()


pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_complaint")]


# One connection, many callers.


async def test_cancelled_callers_cost_no_other_its_reply(commands: Commands) -> None:
    """5000 callers, a third of which are cancelled at any moment between asking and being
    answered: every other one reads what it asked for."""
    choose = random.Random(7)
    big = "x" * 100_000

    async def ask(number: int) -> None:
        if number % 50:
            assert await commands.execute("ECHO", number) == b"%d" % number
        else:
            assert await commands.execute("ECHO", f"{number}{big}") == f"{number}{big}".encode()

    async def leave(task: "asyncio.Task[None]") -> None:
        await asyncio.sleep(choose.random() * 0.01)
        task.cancel()

    stayed: list[asyncio.Task[None]] = []
    left = []
    for round_ in range(50):
        tasks = [asyncio.create_task(ask(round_ * 100 + i)) for i in range(100)]
        leaving = [task for task in tasks if choose.random() < 1 / 3]
        left += [asyncio.create_task(leave(task)) for task in leaving]
        stayed += [task for task in tasks if task not in leaving]
        await asyncio.sleep(0)
    await asyncio.gather(*stayed, *left)
    assert len(stayed) > 3000
    assert await commands.execute("CLIENT", "LIST", "TYPE", "normal") is not None


async def test_commands_arrive_in_the_order_of_their_callers(
    commands: Commands, redis: "Redis"
) -> None:
    before = client_ids(redis)
    await asyncio.gather(*(commands.execute("RPUSH", "list", i) for i in range(3000)))
    assert redis.lrange("list", 0, -1) == [b"%d" % i for i in range(3000)]
    assert len(client_ids(redis) - before) == 1


async def test_error_reaches_its_own_caller_alone(commands: Commands) -> None:
    replies = await asyncio.gather(
        *(commands.execute(*(("ECHO", i) if i % 3 else ("NOSUCH",))) for i in range(300)),
        return_exceptions=True,
    )
    for i, reply in enumerate(replies):
        if i % 3:
            assert reply == b"%d" % i
        else:
            assert isinstance(reply, ResponseError)


async def test_large_replies_are_read_whole(commands: Commands, redis: "Redis") -> None:
    value = random.Random(1).randbytes(8_000_000)
    redis.set("value", value)
    redis.rpush("list", *range(50_000))
    got, listed, echoed = await asyncio.gather(
        commands.execute("GET", "value"),
        commands.execute("LRANGE", "list", 0, -1),
        commands.execute("ECHO", "ñ"),
    )
    assert got == value
    assert listed == [b"%d" % i for i in range(50_000)]
    assert echoed == "ñ".encode()


@pytest.mark.parametrize("greeting", [b"", b"-ERR max number of clients reached\r\n"])
async def test_server_that_hangs_up_at_once_is_a_redis_error(greeting: bytes) -> None:
    """A server that has too many clients does so."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)

    async with serving(hang_up) as address:
        commands = connect(f"redis://{address}", 0.2)
        for _ in range(20):
            with pytest.raises(RedisError):
                await commands.execute("PING")
        await commands.aclose()


async def test_server_that_hangs_up_while_the_loop_is_busy_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of input comes before the connection is ours: asyncio does not tell it again."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await reader.read()

    async def open_slowly(self: Connection) -> None:
        await really_open(self)  # type: ignore[no-untyped-call]
        assert self._reader is not None
        await self._reader.read()

    really_open = Connection.connect
    monkeypatch.setattr(Connection, "connect", open_slowly)
    async with serving(hang_up) as address:
        commands = connect(f"redis://{address}", 0.5)
        with pytest.raises(RedisConnectionError, match="as soon as"):
            await commands.execute("PING")
        await commands.aclose()


async def test_command_that_is_half_sent_fails_when_the_server_ends_its_side() -> None:
    """The server reads no more, so the rest of the command stays here for good."""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        commands = connect(f"redis://127.0.0.1:{listener.getsockname()[1]}", 0.5)
        waiting = asyncio.create_task(commands.execute("ECHO", "x" * 20_000_000))
        server = await asyncio.to_thread(lambda: listener.accept()[0])
        with server:
            await asyncio.to_thread(server.recv, 1)
            server.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(5):
                with pytest.raises(RedisConnectionError):
                    await waiting
        await commands.aclose()


# Opening, leaving, closing.


async def test_failed_opening_without_a_caller_is_forgotten() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, and never answers the AUTH
        commands = connect(f"redis://:secret@127.0.0.1:{deaf.getsockname()[1]}", 0.1)
        task = asyncio.create_task(commands.execute("PING"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        with pytest.raises(RedisError):
            await commands.execute("PING")
        assert time.monotonic() - begun < 1
        await commands.aclose()


async def test_aclose_ends_an_opening() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        begun.set()
        while await reader.read(1000):
            pass
        ended.set()

    async with asyncio.timeout(5), serving(never) as address:
        commands = connect(f"redis://:secret@{address}", 2)
        task = asyncio.create_task(commands.execute("PING"))
        await begun.wait()
        await asyncio.sleep(0.02)  # until it waits for the handshake's reply
        await commands.aclose()
        with pytest.raises((RedisError, asyncio.CancelledError)):
            await task
        async with asyncio.timeout(1):
            await ended.wait()


async def test_reset_fails_what_is_in_flight_and_opens_anew(
    commands: Commands, redis: "Redis"
) -> None:
    commands.reset()  # nothing is open yet
    before = await commands.execute("CLIENT", "ID")
    waiting = [asyncio.create_task(commands.execute("BLPOP", "list", 0)) for _ in range(3)]
    await asyncio.sleep(0.02)
    commands.reset()
    for task in waiting:
        with pytest.raises(RedisConnectionError):
            await task
    assert await commands.execute("CLIENT", "ID") != before
    assert redis.info("clients")["blocked_clients"] == 0


async def test_aclose_fails_what_is_in_flight_and_closes_the_socket(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    before = client_ids(redis)
    never_opened = connect(redis_server.url, 5)
    await never_opened.aclose()
    commands = connect(redis_server.url, 5)
    await commands.execute("PING")
    waiting = asyncio.create_task(commands.execute("BLPOP", "list", 0))
    await asyncio.sleep(0.02)
    await commands.aclose()
    with pytest.raises(RedisConnectionError):
        await waiting
    for closed in never_opened, commands:
        with pytest.raises(RedisConnectionError):
            await closed.execute("PING")
    assert await asyncio.to_thread(comes_true, lambda: client_ids(redis) <= before, 1)


async def test_connection_that_the_server_closed_is_opened_anew(
    commands: Commands, redis: "Redis"
) -> None:
    for _ in range(3):
        assert await commands.execute("PING") == b"PONG"
        redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.02)


async def test_a_thousand_checks_at_once_are_all_answered(redis_server: RedisServer) -> None:
    """Under load the questions queue for some milliseconds. Each has its own time: what came now
    must not be refused because what came before it waited."""
    answered = refused = 0

    async def ask() -> None:
        nonlocal answered, refused
        while time.monotonic() < deadline:
            try:
                assert await store.find(token) is not None
                answered += 1
            except StoreUnavailable:
                refused += 1

    async with open_store(redis_server.url, timeout_seconds=0.25) as store:
        token = (await store.create(7, "laptop")).Token_Sesion
        deadline = time.monotonic() + 0.6
        await asyncio.gather(*(ask() for _ in range(1000)))
    assert (answered > 1000, refused) == (True, 0)
