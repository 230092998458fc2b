"""The single server, the master that Sentinel names and the Cluster: whatever goes wrong between a
caller and Redis, each caller has its own reply or an exception, in time; and then all is well."""

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import RedisError

from sesiones.redis_client import single
from sesiones.redis_client.connection import PipelinedConnection
from tests.harness.fake_redis import TIMEOUT_SECONDS, Network
from tests.harness.stores import EXAMPLES
from tests.harness.virtual_loop import run
from tests.redis_client.programs import QUICK, UNPACKABLE, found_out
from tests.redis_client.variants import QueuesBeforeItPacks

pytestmark = pytest.mark.slow

KINDS = ["server", "sentinel_master", "cluster"]
MAY_TAKE = 6
"""Timeouts: a master is looked up, connections are opened, and the command has its time."""

SERVER = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4])
"""Most of what goes wrong is the first node's affair; 2 to 4 are Sentinels."""
KEY = st.sampled_from(["{a}", "{b}", "{c}", "{d}"])
ASK = st.tuples(
    st.just("ask"),
    KEY,
    st.sampled_from(["execute", "execute", "execute", "on master", "confirmed"]),
    st.booleans(),
    st.sampled_from(["none", "records", "raises"]),
)
STEPS = st.one_of(
    ASK,
    ASK,
    ASK,
    ASK,
    st.tuples(st.just("ask unpackable"), KEY, st.sampled_from(range(len(UNPACKABLE)))),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
    st.tuples(st.just("turn")),
    st.tuples(st.just("pause"), st.sampled_from([0.004, 0.01, 0.3, 0.6, 1.1])),
    st.tuples(st.just("pause"), st.sampled_from([0.004, 0.01, 0.3, 0.6, 1.1])),
    st.tuples(st.just("silence"), SERVER, st.booleans()),
    st.tuples(st.just("pieces"), SERVER, st.integers(1, 9)),
    st.tuples(st.just("error"), SERVER),
    st.one_of(
        st.tuples(st.just("garbage"), SERVER),
        st.tuples(st.just("cut"), SERVER, st.integers(0, 60)),
        st.tuples(st.just("write fails"), SERVER, st.integers(0, 50)),
        st.tuples(st.just("down"), SERVER),
        st.tuples(st.just("up"), SERVER),
        st.tuples(st.just("fail over")),
        st.tuples(st.just("move"), st.integers(1, 16383)),
        st.tuples(st.just("moving"), st.booleans()),
        st.tuples(st.just("reset")),
    ),
)
PROGRAMS = st.lists(STEPS, min_size=4, max_size=25)


@dataclass
class _Call:
    number: bytes
    task: "asyncio.Task[Any]"
    called_with: list[Any] = field(default_factory=list)


class _Play:
    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network = Network(monkeypatch)
        self.servers = [*self.network.nodes, *self.network.sentinels]
        self.commands = getattr(self.network, kind)()
        self.calls: list[_Call] = []
        self.numbers = itertools.count(1)

    def ask(
        self, key: str, how: str = "execute", option: bool = False, on_reply: str = "none"
    ) -> _Call:
        number = b"%d" % next(self.numbers)
        called_with: list[Any] = []

        def call_back(reply: Any) -> Any:
            called_with.append(reply)
            if on_reply == "raises":
                raise ValueError
            return reply

        arguments = "ECHO", number, key
        options: dict[str, Any] = {} if on_reply == "none" else {"on_reply": call_back}
        if how == "on master":
            work = self.commands.execute_on_master(*arguments, keys=[key])
        elif how == "confirmed":
            work = self.commands.execute(*arguments, keys=[key], replicas=1, **options)
        else:
            work = self.commands.execute(
                *arguments, keys=[key], reads=option, safe_to_repeat=option, **options
            )
        call = _Call(number, asyncio.create_task(work), called_with)
        self.calls.append(call)
        return call

    async def step(self, name: str, *arguments: Any) -> None:
        network = self.network
        match name, *arguments:
            case "ask", key, how, option, on_reply:
                self.ask(key, how, option, on_reply)
            case "ask unpackable", key, index:
                task = asyncio.create_task(
                    self.commands.execute("ECHO", UNPACKABLE[index], key, keys=[key])
                )
                self.calls.append(_Call(b"never", task))
            case "cancel", back if back < len(self.calls):
                self.calls[-1 - back].task.cancel()
            case "turn", *_:
                await asyncio.sleep(0)
            case "pause", fraction:
                await asyncio.sleep(fraction * TIMEOUT_SECONDS)
            case "silence", index, silent:
                self.servers[index].silence(silent)
            case "pieces", index, size:
                self.servers[index].piece = size
            case "error", index:
                self.servers[index].next_is_error = True
            case "garbage", index:
                for wire in self.servers[index].wires:
                    self.servers[index].say(wire, b"?\r\n")
            case "cut", index, size:
                self.servers[index].cut_after(size)
            case "write fails", index, after:
                for wire in self.servers[index].wires:
                    wire.write_fails_after = after
            case "down", index:
                self.servers[index].stop()
            case "up", index:
                self.servers[index].up = True
            case "fail over", *_:
                network.master = 1 - network.master
            case "move", boundary:
                network.boundary = boundary
            case "moving", moving:
                network.moving = moving
            case "reset", *_:
                self.commands.reset()

    async def end(self) -> None:
        for server in self.servers:
            server.mend()
        self.network.moving = False
        if tasks := {call.task for call in self.calls}:
            _, waiting = await asyncio.wait(tasks, timeout=MAY_TAKE * TIMEOUT_SECONDS)
            assert not waiting, "a caller hangs"
        for call in self.calls:
            self._judge(call)
        for key in "{a}", "{b}", "{c}", "{d}":
            for _ in range(20):
                call = self.ask(key)
                await asyncio.wait({call.task})
                if call.task.exception() is None:
                    break
                await asyncio.sleep(TIMEOUT_SECONDS)
            assert call.task.result() == call.number, "it does not recover"
        await self.commands.aclose()
        await asyncio.sleep(0)

    def _judge(self, call: _Call) -> None:
        assert call.called_with in ([], [call.number]), "a callback has the reply of another"
        if call.task.cancelled():
            return
        error = call.task.exception()
        if error is None:
            assert call.task.result() == call.number, "a caller has the reply of another"
        elif isinstance(error, ValueError) and call.called_with:
            """The callback's own error."""
        elif call.number == b"never":
            assert isinstance(error, (TypeError, UnicodeEncodeError, RedisError, OSError))
        else:
            assert isinstance(error, (RedisError, OSError)), repr(error)


def play(
    kind: str, variant: type[PipelinedConnection] | None, program: list[tuple[Any, ...]]
) -> None:
    async def played() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            if variant is not None:
                monkeypatch.setattr(single, "PipelinedConnection", variant)
            playing = _Play(kind, monkeypatch)
            try:
                for step in program:
                    await playing.step(*step)
                await playing.end()
            finally:
                with contextlib.suppress(RedisError):
                    await playing.commands.aclose()

    run(played)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "sesiones.redis")  # callbacks fail by the thousand


@pytest.mark.parametrize("kind", KINDS)
def test_each_caller_has_its_own_reply_or_an_exception(kind: str) -> None:
    @settings(QUICK, max_examples=10 * EXAMPLES)
    @given(PROGRAMS)
    def holds(program: list[tuple[Any, ...]]) -> None:
        play(kind, None, program)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_connection_that_breaks_a_rule_is_found_out(kind: str) -> None:
    found_out(PROGRAMS, partial(play, kind, QueuesBeforeItPacks))
