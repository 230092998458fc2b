"""The call of a batch of checks that no task waits for: that there is none, and that a task goes on
wherever the call cannot be sent or fails, whatever fails and whenever."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.metrics import IN_FLIGHT, cell
from sesiones.redis_client import connection
from sesiones.sesion import StoreUnavailable
from sesiones.store import batching, checks, runner
from sesiones.store.batching import Batcher
from sesiones.store.checks import CheckQueue
from sesiones.store.runner import ScriptRunner
from sesiones.tasks import FallbackFuture
from tests.harness.fake_redis import TIMEOUT_SECONDS, FakeServer, Network
from tests.harness.stores import Opener, open_store, store_on
from tests.harness.virtual_loop import CLOCK, run

USERS = range(1, 5)
TOKENS = {user: tokens.make(user) for user in USERS}


@pytest.mark.anyio
@pytest.mark.parametrize("deployment_url", ["server", "sentinel", "cluster"], indirect=True)
async def test_check_on_an_open_connection_needs_no_task(
    deployment_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(deployment_url, touch_seconds=1) as store:
        own = [await store.create(user, "d") for user in range(8)]
        for each in own:
            assert await store.find(each.Token_Sesion) == each

        def no_task(work: Any) -> None:
            work.close()
            raise AssertionError("a task")

        monkeypatch.setattr(checks, "background", no_task)
        found = await asyncio.gather(*(store.find(each.Token_Sesion) for each in own))
        assert [sesion and sesion.ID_Usuario for sesion in found] == [*range(8)]


@pytest.mark.anyio
async def test_script_that_redis_has_lost_is_sent_again(redis: Redis, open_more: Opener) -> None:
    store = open_more()
    sesion = await store.create(7, "d")
    for _ in range(3):
        assert await store.find(sesion.Token_Sesion) is not None
        redis.script_flush()


# On a simulated server and clock.


class Scene:
    """A store on a server that knows TOKENS, and answers each check with the session of the user.
    ``reply``: what becomes of the reply to a batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in batching, checks, runner:
            monkeypatch.setattr(module, "time", CLOCK)
        self.network = Network(monkeypatch)
        self.server: FakeServer = self.network.nodes[0]
        self.reply: Callable[[Any], Any] = lambda reply: reply
        self.calls = 0
        self.others = self.server.answer
        self.server.answer = self._answer
        self.store = store_on(self.network.server(), timeout_seconds=TIMEOUT_SECONDS)
        keys = self.store._keys
        self._records = {
            keys.session(token).encode(): b"1000 0 1800 1 %d %d:d" % (user, user)
            for user, token in TOKENS.items()
        }
        self.answers: list[tuple[int, Any]] = []
        """The user, and what its check was answered with."""

    def _answer(self, command: list[bytes], asking: bool) -> Any:
        if command[0] not in (b"EVALSHA", b"EVAL"):
            return self.others(command, asking)
        self.calls += 1
        keys = [word for word in command[3 + int(command[2]) :] if b":h:" in word]
        found = [each for key in keys for each in (self._records[key], 2_000_000_000)]
        return self.reply([command[-1], [*found, 1_000_000_000, 0, []]])

    def ask(self, *users: int) -> None:
        submit = self.store.checker()
        for user in users:
            submit(TOKENS[user], partial(self._take, user))

    def _take(self, user: int, answer: Any) -> None:
        self.answers.append((user, answer))

    async def open(self) -> None:
        self.ask(1)
        await asyncio.sleep(0.05)
        self.expect({1: 1})
        self.calls = 0

    def expect(self, counts: dict[int, int]) -> None:
        """So many answers have come to the checks of each user, all with its own session."""
        for user, answer in self.answers:
            assert answer is not None
            assert answer.ID_Usuario == user, answer
        assert {user: sum(one == user for one, _ in self.answers) for user in counts} == counts
        self.answers.clear()

    def expect_unavailable(self, number: int) -> None:
        assert [type(answer) for _, answer in self.answers] == [StoreUnavailable] * number
        self.answers.clear()

    def in_flight(self) -> float:
        return self.store.metrics._cells[cell(IN_FLIGHT, "check")]


def on_scene(test: Callable[[Scene], Any]) -> Callable[[], None]:
    """A test on the clock of the simulated server."""

    async def work() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            scene = Scene(monkeypatch)
            await scene.open()
            await test(scene)
            assert scene.in_flight() == 0
            await scene.store.aclose()
            await asyncio.sleep(0)

    def run_test() -> None:
        run(work)

    run_test.__name__, run_test.__doc__, run_test.__module__ = (
        test.__name__,
        test.__doc__,
        test.__module__,
    )
    return run_test


@on_scene
async def test_reply_of_another_call_is_unavailable_and_drops_the_connection(scene: Scene) -> None:
    scene.reply = lambda reply: [b"0", reply[1]]
    scene.ask(2, 3)
    await asyncio.sleep(0.05)
    scene.expect_unavailable(2)
    assert scene.calls == 1
    scene.reply = lambda reply: reply
    scene.ask(2, 3)
    await asyncio.sleep(0.05)
    scene.expect({2: 1, 3: 1})
    assert scene.server.accepted > 1


@on_scene
async def test_malformed_reply_is_unavailable(scene: Scene) -> None:
    for malformed in (
        lambda reply: [reply[0], []],
        lambda reply: [reply[0], reply[1][1:]],
        lambda reply: [reply[0], [*reply[1][:-1], [[]]]],
        lambda reply: b"",
        lambda reply: None,
        lambda reply: 7,
    ):
        scene.reply = malformed
        scene.ask(2, 3)
        await asyncio.sleep(0.05)
        scene.expect_unavailable(2)


@pytest.mark.parametrize(
    "error", ["READONLY replica", "NOSCRIPT none", "ERR connection"], ids=["demoted", "lost", "cut"]
)
def test_failure_that_a_second_try_may_mend_costs_no_answer(error: str) -> None:
    @on_scene
    async def test(scene: Scene) -> None:
        failures = itertools.count()

        def fail_once(reply: Any) -> Any:
            if next(failures):
                return reply
            if error.endswith("connection"):
                scene.server.cut_after(1)
            return RuntimeError(error)

        scene.reply = fail_once
        scene.ask(2, 3)
        await asyncio.sleep(0.05)
        scene.expect({2: 1, 3: 1})
        assert scene.calls == 2

    test()


@on_scene
async def test_error_of_the_script_is_unavailable_at_once(scene: Scene) -> None:
    scene.reply = lambda _: RuntimeError("ERR a script")
    scene.ask(2)
    await asyncio.sleep(0.02)
    scene.expect_unavailable(1)
    assert scene.calls == 1


@on_scene
async def test_silent_server_is_peeked_at_after_half_of_the_time(scene: Scene) -> None:
    scene.server.swallow()
    scene.ask(2, 3)
    await asyncio.sleep(TIMEOUT_SECONDS / 2 + 0.03)
    scene.expect({2: 1, 3: 1})
    assert scene.calls == 1


@on_scene
async def test_check_is_answered_by_its_deadline(scene: Scene) -> None:
    """A check that has waited for others has less time than its connection."""
    scene.server.silence(True)
    for user in 1, 2:
        scene.ask(user)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    begun = CLOCK.monotonic()
    scene.ask(3)
    while len(scene.answers) < 3:
        await asyncio.sleep(0.001)
        assert CLOCK.monotonic() - begun < 1.6 * TIMEOUT_SECONDS
    scene.expect_unavailable(3)
    scene.server.silence(False)


@on_scene
async def test_tasks_that_are_cancelled_take_no_check_with_them(scene: Scene) -> None:
    """asyncio.run() cancels all tasks at its end, those that have not begun too."""
    for turns in range(4):
        scene.reply = lambda _: RuntimeError("ERR a script")
        scene.ask(2)
        await asyncio.sleep(0.0005)
        assert scene.calls == 1
        for _ in range(turns):
            await asyncio.sleep(0)
        own = asyncio.current_task()
        scene.server.wires[-1].deliver(10_000)
        for task in asyncio.all_tasks():
            if task is not own:
                task.cancel()
        await asyncio.sleep(0.05)
        scene.expect_unavailable(1)
        scene.calls = 0


@on_scene
async def test_aclose_answers_checks_in_flight(scene: Scene) -> None:
    scene.server.silence(True)
    for user in 1, 2, 3:
        scene.ask(user)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.wait_for(scene.store.aclose(), 0.01)
    scene.expect_unavailable(3)


INTERRUPTED = {
    "_flush": Batcher._flush,
    "_answered": Batcher._answered,
    "_find_batch": CheckQueue._find_batch,
    "_slid": CheckQueue._slid,
    "send": ScriptRunner.send,
    "FallbackFuture": FallbackFuture.__init__,
    "set_result": FallbackFuture.set_result,
    "set_exception": FallbackFuture.set_exception,
    "_needs_task": FallbackFuture._needs_task,
}


@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupt_between_any_two_lines_costs_no_other_check(name: str, fails: bool) -> None:
    """Ctrl-C, where the loop goes on. At the worst a check has no answer; none has two, or that of
    another, and those behind it are answered."""
    code = INTERRUPTED[name].__code__

    async def interrupted_at(step: int) -> bool:
        """Whether the function has so many lines."""
        steps = itertools.count()

        def in_code(frame: Any, event: str, _: Any) -> Any:
            if event == "line" and next(steps) == step:
                sys.settrace(None)
                raise KeyboardInterrupt
            return in_code

        with pytest.MonkeyPatch.context() as monkeypatch:
            scene = Scene(monkeypatch)
            await scene.open()
            loop = asyncio.get_running_loop()

            def call_soon(callback: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
                def guarded(*given: Any) -> None:
                    with contextlib.suppress(KeyboardInterrupt):
                        callback(*given)

                return type(loop).call_soon(loop, guarded, *arguments, **how)

            monkeypatch.setattr(loop, "call_soon", call_soon)
            deliver = connection.PipelinedConnection.data_received

            def data_received(self: Any, data: bytes) -> None:
                with contextlib.suppress(KeyboardInterrupt):
                    deliver(self, data)

            monkeypatch.setattr(connection.PipelinedConnection, "data_received", data_received)
            if fails:
                scene.reply = lambda _: RuntimeError("ERR a script")
            before = sys.gettrace()
            sys.settrace(lambda frame, *_: in_code if frame.f_code is code else None)
            try:
                scene.ask(2, 3)
                await asyncio.sleep(0.01)
            finally:
                sys.settrace(before)
            scene.reply = lambda reply: reply
            await asyncio.sleep(3 * TIMEOUT_SECONDS)
            for user in 2, 3:
                given = [answer for one, answer in scene.answers if one == user]
                assert len(given) <= 1
                assert all(
                    isinstance(answer, StoreUnavailable) or answer.ID_Usuario == user
                    for answer in given
                )
            scene.answers.clear()
            for _ in range(5):
                scene.ask(1, 4)
                await asyncio.sleep(0.05)
            scene.expect({1: 5, 4: 5})
            async with asyncio.timeout(1):
                await scene.store.aclose()
        return next(steps) > step

    step = 0
    while run(partial(interrupted_at, step)):
        step += 1
