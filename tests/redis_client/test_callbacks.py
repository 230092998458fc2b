"""The callback of a reply: when it is called, and what becomes of what it returns or raises."""

import asyncio
import logging
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from sesiones.redis_client.connection import NoReplyError, PipelinedConnection
from tests.harness.fake_redis import Wire, opened, packed
from tests.harness.virtual_loop import virtual

pytestmark = pytest.mark.usefixtures("virtual_clock")


class Echo:
    """A connection to a server that answers when deliver() is called."""

    def __init__(self) -> None:
        self.wire = Wire(self._received)
        self.connection = PipelinedConnection(opened(self.wire), 1.0)

    def _received(self, command: list[bytes]) -> None:
        self.wire.output += packed(command[-1])


@virtual
async def test_result_is_what_the_callback_returns() -> None:
    echo = Echo()
    sent = echo.connection.send(("ECHO", "a"), lambda reply: reply * 3)
    echo.wire.deliver(100)
    assert await sent == b"aaa"


@virtual
async def test_error_of_a_callback_is_its_callers_alone(caplog: pytest.LogCaptureFixture) -> None:
    echo = Echo()
    raises = echo.connection.send(("ECHO", "a"), lambda reply: reply.no_such_thing)
    other = echo.connection.send(("ECHO", "b"))
    echo.wire.deliver(100)
    with pytest.raises(AttributeError):
        await raises
    assert await other == b"b"
    assert echo.connection.usable
    assert caplog.records == []


@virtual
async def test_error_of_a_callback_whose_caller_was_cancelled_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    echo = Echo()
    sent = echo.connection.send(("ECHO", "a"), lambda reply: reply.no_such_thing)
    sent.cancel()
    echo.wire.deliver(100)
    assert echo.connection.usable
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("cancelled", [False, True])
@virtual
async def test_callback_is_called_before_later_replies_and_the_loss_of_the_connection(
    cancelled: bool,
) -> None:
    """Otherwise a loss would queue the tombstones for replay before the last of them is there."""

    echo = Echo()
    told: list[Any] = []
    echo.connection.on_lost = lambda: told.append("lost")
    writes = [echo.connection.send(("ECHO", number), told.append) for number in (b"1", b"2", b"3")]
    checked = echo.connection.send(("ECHO", "check"))
    checked.add_done_callback(lambda _: told.append("checked"))
    if cancelled:
        for write in writes:
            write.cancel()
    echo.wire.deliver(1000)
    assert told == [b"1", b"2", b"3"]  # in the turn in which they were read
    echo.wire.lose()
    await asyncio.sleep(0)
    assert sorted(told[3:]) == ["checked", "lost"]


@virtual
async def test_late_reply_is_an_error_of_its_own_kind() -> None:
    echo = Echo()
    sent = echo.connection.send(("ECHO", "a"))
    with pytest.raises(NoReplyError) as raised:
        await sent
    assert isinstance(raised.value, RedisTimeoutError)
