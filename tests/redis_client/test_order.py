"""One connection: the n-th reply belongs to the n-th command that was written, whatever goes wrong.

A program of steps is played on a connection: commands, some of which cannot be packed or written,
cancelled callers, replies in pieces, errors, garbage, silence and loss. Then each caller must have
the reply of its own command, or an exception, in time.
"""

import asyncio
import contextlib
import itertools
import logging
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from sesiones.redis_client.connection import PipelinedConnection
from tests.harness.fake_redis import Wire, opened, packed
from tests.harness.virtual_loop import run
from tests.redis_client.programs import QUICK, UNPACKABLE, found_out
from tests.redis_client.variants import VARIANTS

TIMEOUT_SECONDS = 0.2
SLACK_SECONDS = 0.01

PIECE = st.integers(1, 40)
PAUSE = st.sampled_from([0.0, 0.01, 0.5, 0.6, 0.9, 1.1])
"""Of the timeout."""
OnReplyKind = Literal["none", "records", "raises", "sends", "drops"]
ON_REPLY = st.sampled_from(["none", "records", "raises", "sends", "drops"])


LETHAL = st.one_of(
    st.tuples(
        st.just("write fails"),
        st.integers(0, 40),
        st.sampled_from([OSError, RuntimeError, KeyboardInterrupt]),
    ),
    st.tuples(st.just("a reply of no command")),
    st.tuples(st.just("garbage"), st.sampled_from([b"?\r\n", b"*-7\r\n", b":x\r\n", b"\x00\x00"])),
    st.tuples(st.just("lose"), st.sampled_from([None, OSError("reset")])),
    st.tuples(st.just("fail")),
    st.tuples(st.just("retire")),
)
"""After these there is no connection, or soon none."""
SEND = st.tuples(st.just("send"), ON_REPLY, st.booleans())
DELIVER = st.tuples(st.just("deliver"), PIECE | st.just(10_000))
STEPS = st.one_of(
    SEND,
    SEND,
    SEND,
    DELIVER,
    DELIVER,
    st.tuples(st.just("turn")),
    st.tuples(st.just("pause"), PAUSE),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
    st.tuples(st.just("send unpackable"), st.sampled_from(range(len(UNPACKABLE))), ON_REPLY),
    st.tuples(st.just("next reply is an error")),
    st.tuples(st.just("silence"), st.booleans()),
    st.tuples(st.just("confirm")),
    st.tuples(st.just("confirm and leave")),
    LETHAL,
)
PROGRAMS = st.builds(
    lambda steps, pause: [*steps, ("pause", pause)],
    st.lists(STEPS, min_size=4, max_size=25),
    PAUSE,
)


@dataclass
class _Call:
    number: bytes
    future: "asyncio.Future[Any]"
    sent_at: float
    on_reply: OnReplyKind = "none"
    called_with: list[Any] = field(default_factory=list)
    done_at: float | None = None


class _Play:
    """Plays one program on one connection."""

    def __init__(self, variant: type[PipelinedConnection]) -> None:
        self.wire = Wire(self._received)
        self.connection = variant(opened(self.wire), TIMEOUT_SECONDS)
        self.loop = asyncio.get_running_loop()
        self.numbers = itertools.count(1)
        self.calls: list[_Call] = []
        self.confirmations: list[asyncio.Future[int]] = []
        self.written: list[list[bytes]] = []
        """The commands that have arrived as a whole, in their order."""
        self.replies: list[Any] = []
        """The replies that were given, in their order."""
        self.next_is_error = self.silent = False
        self._unsaid: list[bytes] = []

    def _received(self, command: list[bytes]) -> None:
        self.written.append(command)
        reply: Any = b"TIME"
        if command[0] == b"ECHO":
            reply = command[1]
        elif command[0] == b"WAIT":
            reply = len(self.written)
        if self.next_is_error:
            self.next_is_error = False
            reply = RedisError(f"ERR {reply!r}")
        self.say(packed(reply), reply)

    def say(self, data: bytes, *replies: Any) -> None:
        self.replies += replies
        self._unsaid.append(data)
        self.speak()

    def speak(self) -> None:
        if not self.silent:
            self.wire.output += b"".join(self._unsaid)
            self._unsaid.clear()

    def send(self, kind: OnReplyKind, safe_to_repeat: bool, *, argument: Any = None) -> None:
        number = b"%d" % next(self.numbers)
        called_with: list[Any] = []

        def on_reply(reply: Any) -> Any:
            called_with.append(reply)
            if kind == "raises":
                raise ValueError
            if kind == "sends":
                self.send("none", False)
            if kind == "drops":
                self.connection.fail("by a callback")
            return reply

        arguments = ("ECHO", number if argument is None else argument)
        sent_at = self.loop.time()
        future = self.connection.send(
            arguments, None if kind == "none" else on_reply, safe_to_repeat=safe_to_repeat
        )
        call = _Call(number, future, sent_at, kind, called_with)
        self.calls.append(call)
        future.add_done_callback(lambda _: setattr(call, "done_at", self.loop.time()))

    async def step(self, name: str, *arguments: Any) -> None:
        wire, connection = self.wire, self.connection
        match name, *arguments:
            case "send", kind, safe_to_repeat:
                self.send(kind, safe_to_repeat)
            case "send unpackable", index, kind:
                waiting = len(connection._in_flight)
                refused = (TypeError, UnicodeEncodeError)
                unpackable = UNPACKABLE[index]
                if unpackable is None:
                    unpackable = (None,)
                with pytest.raises(refused):
                    connection.send(("ECHO", unpackable), None if kind == "none" else print)
                assert len(connection._in_flight) == waiting
            case "write fails", after, error:
                wire.write_fails_after, wire.write_error = after, error
                if issubclass(error, Exception):
                    self.send("records", False)
                elif not wire.is_closing():
                    with pytest.raises(error):
                        self.send("records", False)
                wire.write_fails_after = None
            case "cancel", back if back < len(self.calls):
                self.calls[-1 - back].future.cancel()
            case "deliver", size:
                wire.deliver(size)
            case "turn", *_:
                await asyncio.sleep(0)
            case "pause", fraction:
                await asyncio.sleep(fraction * TIMEOUT_SECONDS)
            case "next reply is an error", *_:
                self.next_is_error = True
            case "a reply of no command", *_:
                self.say(b"+STRAY\r\n", b"STRAY")
            case "garbage", data:
                self.say(data)
            case "silence", silent:
                self.silent = silent
                self.speak()
            case "lose", error:
                wire.lose(error)
            case "fail", *_:
                connection.fail("reset")
            case "retire", *_:
                connection.retired = True
                if connection.idle:
                    connection.fail("replaced by another connection")
            case "confirm", *_:
                self.confirmations.append(connection.confirmed(1))
            case "confirm and leave", *_:
                connection.confirmed(1).cancel()

    async def end(self) -> None:
        """Each caller has an outcome. The connection works, or says that it is lost."""
        self.silent = False
        self.speak()
        while self.wire.output and not self.wire.is_closing():
            self.wire.deliver(10_000)
            await asyncio.sleep(0)
        garbled = self.wire.is_closing()
        self.send("records", False)
        self.wire.deliver(10_000)
        last = self.calls[-1]
        await asyncio.sleep(0)
        if not garbled and not self.wire.is_closing():
            assert last.future.done(), "the next command hangs"
        deadline = self.loop.time() + 3 * TIMEOUT_SECONDS
        while self.loop.time() < deadline:
            await asyncio.sleep(TIMEOUT_SECONDS / 10)
            self.wire.deliver(10_000)
        self._judge()
        self.connection.fail("over")
        await asyncio.sleep(0)

    def _judge(self) -> None:
        position = {
            command[1]: index for index, command in enumerate(self.written) if command[0] == b"ECHO"
        }
        for call in self.calls:
            assert call.done_at is not None, "a caller hangs"
            assert call.done_at - call.sent_at <= TIMEOUT_SECONDS + SLACK_SECONDS
            index = position.get(call.number)
            given = self.replies[index] if index is not None and index < len(self.replies) else None
            assert len(call.called_with) <= 1
            for reply in call.called_with:
                assert reply == given, "a callback has the reply of another"
            if call.future.cancelled():
                continue
            error = call.future.exception()
            if error is None:
                assert call.future.result() == given, "a caller has the reply of another"
                assert call.on_reply == "none" or call.called_with == [given]
            elif call.on_reply == "raises" and isinstance(error, ValueError):
                assert call.called_with == [given]
            elif isinstance(given, RedisError) and not isinstance(error, RedisConnectionError):
                assert str(given).removeprefix("ERR ") in str(error), "the error of another"
            else:
                assert isinstance(error, RedisConnectionError)
        counts = [
            reply
            for command, reply in zip(self.written, self.replies, strict=False)
            if command[0] == b"WAIT"
        ]
        for confirmation in self.confirmations:
            assert confirmation.done(), "a confirmation hangs"
            if confirmation.exception() is None:
                assert confirmation.result() in counts, "a confirmation has the reply of another"


def play(variant: type[PipelinedConnection], program: list[tuple[Any, ...]]) -> None:
    async def played() -> None:
        playing = _Play(variant)
        for step in program:
            await playing.step(*step)
        await playing.end()

    run(played)


@pytest.fixture(autouse=True)
def quiet(virtual_clock: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "sesiones.redis")  # callbacks fail by the thousand


@QUICK
@given(PROGRAMS)
def test_nth_reply_belongs_to_the_nth_command(program: list[tuple[Any, ...]]) -> None:
    play(PipelinedConnection, program)


@pytest.mark.parametrize("variant", VARIANTS)
def test_connection_that_breaks_a_rule_is_found_out(variant: type[PipelinedConnection]) -> None:
    found_out(PROGRAMS, partial(play, variant))


@pytest.mark.parametrize("name", ["send", "data_received", "_deliver"])
@pytest.mark.parametrize("skipped", range(4))
def test_interrupt_between_any_two_lines_costs_no_caller_its_own_reply(
    name: str, skipped: int
) -> None:
    """Ctrl-C, where the loop goes on: in a notebook, say. ``skipped``: calls before the one that is
    interrupted."""
    code = getattr(PipelinedConnection, name).__code__

    async def interrupted_at(step: int) -> bool:
        """Whether the function has so many lines."""
        wire = Wire(lambda command: wire.output.extend(packed(command[1])))
        connection = PipelinedConnection(opened(wire), TIMEOUT_SECONDS)
        steps, calls = itertools.count(), itertools.count()
        sent: list[tuple[bytes, asyncio.Future[Any]]] = []

        def in_code(frame: Any, event: str, _: Any) -> Any:
            # The first line is the call's own: what raises there has not begun.
            if event == "line" and next(steps) == step:
                sys.settrace(None)
                raise KeyboardInterrupt
            return in_code

        def trace(frame: Any, event: str, _: Any) -> Any:
            return in_code if frame.f_code is code and next(calls) == skipped else None

        def send(number: bytes) -> None:
            sent.append((number, connection.send(("ECHO", number))))

        def deliver() -> None:
            wire.deliver(10_000)

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for number in range(12):
                with contextlib.suppress(KeyboardInterrupt):
                    send(b"%d" % number)
                if number % 3 == 2:
                    with contextlib.suppress(KeyboardInterrupt):
                        deliver()
        finally:
            sys.settrace(before)
        deliver()
        await asyncio.sleep(2 * TIMEOUT_SECONDS)
        for own, future in sent:
            if future.done() and future.exception() is None:
                assert future.result() == own
        connection.fail("the end")
        return next(steps) > step

    step = 1 if name == "data_received" else 0
    while run(partial(interrupted_at, step)):
        step += 1
    assert step > 3
