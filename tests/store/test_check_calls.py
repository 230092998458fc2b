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

from sesiones.redis_client import connection
from sesiones.redis_client.single import Server
from sesiones.sesion import StoreUnavailable
from sesiones.store import checks
from sesiones.store.batching import Batcher
from sesiones.store.checks import CheckQueue
from sesiones.store.runner import ScriptRunner
from sesiones.tasks import READ_FIRST_SECONDS, FallbackFuture
from tests.harness.fake_redis import TIMEOUT_SECONDS, FakeServer
from tests.harness.stores import Opener, open_store
from tests.harness.virtual_loop import CLOCK, run
from tests.store.check_scene import TOKENS, Scene, on_scene, slot


@pytest.mark.anyio
@pytest.mark.parametrize("deployment_url", ["server", "sentinel", "cluster"], indirect=True)
async def test_check_on_an_open_connection_needs_no_task(
    deployment_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(deployment_url, touch_seconds=1) as store:
        own = [await store.create(user, "d") for user in range(8)]
        for each in own:
            assert await store.find(each.Token_Sesion) is not None

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


# On simulated servers and a simulated clock.


@on_scene
async def test_reply_of_another_call_is_unavailable_and_drops_the_connection(scene: Scene) -> None:
    scene.reply = lambda _, reply: [b"0", reply[1]]
    scene.ask(2, 3)
    await asyncio.sleep(0.05)
    scene.expect_unavailable(2)
    assert scene.calls == 1
    scene.reply = lambda _, reply: reply
    scene.ask(2, 3)
    await asyncio.sleep(0.05)
    scene.expect({2: 1, 3: 1})
    assert scene.server.accepted > 1


@on_scene
async def test_malformed_reply_is_unavailable(scene: Scene) -> None:
    for scene.reply in (
        lambda _, reply: [reply[0], []],
        lambda _, reply: [reply[0], reply[1][1:]],
        lambda _, reply: [reply[0], [*reply[1][:-1], [[]]]],
        lambda *_: b"",
        lambda *_: None,
        lambda *_: 7,
    ):
        scene.ask(2, 3)
        await asyncio.sleep(0.05)
        scene.expect_unavailable(2)


@pytest.mark.parametrize(
    "error", ["READONLY replica", "NOSCRIPT none", "ERR connection"], ids=["demoted", "lost", "cut"]
)
def test_failure_that_a_second_try_may_mend_costs_no_answer(error: str) -> None:
    @partial(on_scene, cache_seconds=30)
    async def test(scene: Scene) -> None:
        failures = itertools.count()
        replies, misses = scene.replies(), scene.misses()

        def fail_once(_: FakeServer, reply: Any) -> Any:
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
        assert scene.replies() == replies + 1
        assert scene.misses() == misses + 2
        cache = scene.store.near_cache()
        assert cache is not None
        assert all(cache.get(TOKENS[user]) for user in (2, 3))

    test()


@on_scene
async def test_error_of_the_script_is_unavailable_at_once(scene: Scene) -> None:
    scene.reply = lambda *_: RuntimeError("ERR a script")
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


@partial(on_scene, kind="cluster")
async def test_call_that_fails_is_sent_again_although_another_node_is_silent(scene: Scene) -> None:
    """A silent node makes checks peek for a while, those of all nodes, but not those in flight."""
    await scene.open()  # now the map of slots is known, and both nodes are asked
    silent, node = scene.network.nodes
    of_node = [user for user, token in TOKENS.items() if slot(token) >= scene.network.boundary]
    of_silent = [user for user in TOKENS if user not in of_node]
    scene.reply = lambda server, reply: (
        RuntimeError("NOSCRIPT none") if server is node and scene.calls == 2 else reply
    )
    silent.silence(True)
    scene.ask(of_silent[0])
    await asyncio.sleep(TIMEOUT_SECONDS / 2 + READ_FIRST_SECONDS / 2)
    scene.ask(of_node[0])
    await asyncio.sleep(0.01)
    assert scene.calls == 3
    scene.expect({of_node[0]: 1})
    await asyncio.sleep(TIMEOUT_SECONDS)
    scene.expect_unavailable(1)
    silent.silence(False)


@partial(on_scene, kind="cluster")
async def test_answer_moved_concerns_the_node_that_gives_it(scene: Scene) -> None:
    """To the second of two calls, too, when the first answer has corrected the map of slots."""
    renewed: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Server, "renew_lease", lambda server: renewed.append(server.name))
        old, new = scene.network.nodes
        (user, token), *_ = (
            (user, token) for user, token in TOKENS.items() if slot(token) < scene.network.boundary
        )
        scene.reply = lambda server, reply: (
            RuntimeError(f"MOVED {slot(token)} node:2") if server is old else reply
        )
        for _ in range(2):
            scene.ask(user)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert scene.calls == 2
        await asyncio.sleep(0.01)
        scene.expect({user: 2})
        assert new.accepted
        assert renewed == ["node:1", "node:1"]


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
        scene.reply = lambda *_: RuntimeError("ERR a script")
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
    miscounted: list[bool] = []

    async def interrupted_at(step: int) -> bool:
        """Whether the function has so many lines."""
        steps = itertools.count()

        def in_code(frame: Any, event: str, _: Any) -> Any:
            if event == "line" and next(steps) == step:
                sys.settrace(None)
                raise KeyboardInterrupt
            return in_code

        with pytest.MonkeyPatch.context() as monkeypatch:
            scene = Scene(monkeypatch, "server", 0)
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
                scene.reply = lambda *_: RuntimeError("ERR a script")
            before = sys.gettrace()
            sys.settrace(lambda frame, *_: in_code if frame.f_code is code else None)
            try:
                scene.ask(2, 3)
                await asyncio.sleep(0.01)
            finally:
                sys.settrace(before)
            scene.reply = lambda _, reply: reply
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
            miscounted.append(scene.in_flight() != 0)
        return next(steps) > step

    step = 0
    while run(partial(interrupted_at, step)):
        step += 1
    # A call is counted beside the set of those in flight: one interrupt fits between the two.
    assert sum(miscounted) <= 1
