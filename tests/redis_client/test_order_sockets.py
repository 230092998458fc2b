"""The same rule over real sockets: a server echoes what it is asked in pieces, pauses, hangs up and
resets at any byte; each caller has its own reply or an exception, and none waits for ever."""

import asyncio
import itertools
import random
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis.exceptions import RedisError

from sesiones.redis_client import Commands, connect
from tests.harness.fake_redis import packed, serving
from tests.redis_client.programs import UNPACKABLE

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 0.3
CALLERS, CALLS = 30, 25


class EchoServer:
    """``faults``: whether anything goes wrong."""

    def __init__(self, seed: int) -> None:
        self.faults = True
        self.connections = 0
        self._random = random.Random(seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        commands = hiredis.Reader()
        left = self._random.randrange(50, 5000)
        """How many bytes are sent until something goes wrong."""
        while data := await reader.read(65536):
            commands.feed(data)
            output = b""
            while command := commands.gets():
                output += packed(command[1] if len(command) > 1 else b"TIME")
            while output:
                size = self._random.randrange(1, 200)
                if self.faults and left < size:
                    writer.write(output[:left])
                    return await self._break(writer)
                writer.write(output[:size])
                left -= size
                output = output[size:]
                if self._random.random() < 0.1:
                    await asyncio.sleep(self._random.random() * 0.01)
        return None

    async def _break(self, writer: asyncio.StreamWriter) -> None:
        match self._random.randrange(3):
            case 0:  # a reset; else it hangs up
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case 1:  # half of the time, or all of it
                await asyncio.sleep(TIMEOUT_SECONDS * self._random.choice([0.6, 1.2]))


@pytest.fixture(params=["tcp", "unix"])
async def served(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[EchoServer, Commands]]:
    echo = EchoServer(seed=7)
    scheme, path = ("redis", None) if request.param == "tcp" else ("unix", tmp_path / "redis.sock")
    async with serving(echo.serve, path) as address:
        commands = connect(f"{scheme}://{address}", TIMEOUT_SECONDS)
        yield echo, commands
        await commands.aclose()
        await asyncio.sleep(1.5 * TIMEOUT_SECONDS)  # until the handlers have seen it


async def test_each_caller_has_its_own_reply_or_an_exception(
    served: tuple[EchoServer, Commands],
) -> None:
    echo, commands = served
    choose = random.Random(11)
    numbers = itertools.count()
    outcomes = {"own": 0, "failed": 0, "left": 0}

    async def call() -> None:
        number = b"%d" % next(numbers) * choose.randrange(1, 20)
        called_with: list[Any] = []

        def on_reply(reply: Any) -> Any:
            called_with.append(reply)
            if choose.random() < 0.2:
                raise ValueError
            return reply

        if choose.random() < 0.05:
            with pytest.raises((TypeError, UnicodeEncodeError, RedisError, OSError)):
                await commands.execute("ECHO", choose.choice(UNPACKABLE))
            return
        task = asyncio.create_task(
            commands.execute(
                "ECHO", number, on_reply=on_reply, safe_to_repeat=choose.random() < 0.5
            )
        )
        if choose.random() < 0.2:
            await asyncio.sleep(choose.random() * 0.005)
            task.cancel()
        done, _ = await asyncio.wait({task}, timeout=3 * TIMEOUT_SECONDS + 2)
        assert done, "a caller hangs"
        assert called_with in ([], [number])
        if task.cancelled():
            outcomes["left"] += 1
        elif error := task.exception():
            assert isinstance(error, (RedisError, OSError, ValueError)), repr(error)
            outcomes["failed"] += 1
        else:
            assert task.result() == number
            outcomes["own"] += 1

    async def caller() -> None:
        for _ in range(CALLS):
            await call()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    assert echo.connections > 2
    assert all(outcomes.values()), outcomes
    echo.faults = False
    commands.reset()
    for number in range(50):
        assert await commands.execute("ECHO", b"%d" % number) == b"%d" % number
