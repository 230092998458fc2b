"""The front of the check: what goes out together, and that no asker harms another."""

import asyncio
import time
from typing import Any

import pytest

from sesiones import tokens
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from sesiones.store.batching import Batcher
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store

pytestmark = pytest.mark.anyio


OVERDUE = StoreUnavailable("overdue")


class Desk:
    """Answers each question with itself, when told to."""

    def __init__(self, batch_max: int = 10, in_flight_max: int = 2, timeout: float = 1.0) -> None:
        self.batches: list[list[int]] = []
        self.deadlines: list[float] = []
        self.open = asyncio.Event()
        self.answers: list[Any] = []
        self.observed: list[tuple[list[float], list[Any]]] = []
        self.error: Exception | None = None
        self.batcher: Batcher[int, int] = Batcher(
            self.ask,
            timeout,
            batch_max=batch_max,
            in_flight_max=in_flight_max,
            overdue=lambda: OVERDUE,
            observe=lambda asked, answers: self.observed.append((asked, list(answers))),
        )

    async def ask(self, questions: list[int], deadline: float) -> list[int]:
        self.batches.append(questions)
        self.deadlines.append(deadline)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return questions

    def submit(self, *questions: int) -> None:
        for question in questions:
            self.batcher.submit(question, self.answers.append)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def fail(_: object) -> None:
    raise RuntimeError("the asker's own affair")


async def test_one_turn_is_one_batch() -> None:
    desk = Desk()
    desk.submit(1, 2, 3)
    assert desk.batches == []  # nothing goes out before the turn is over
    await desk.settle()
    assert desk.batches == [[1, 2, 3]]
    desk.open.set()
    await desk.settle()
    assert desk.answers == [1, 2, 3]


async def test_a_lone_question_waits_for_nothing() -> None:
    desk = Desk()
    desk.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert desk.batches == [[1]]


async def test_while_calls_are_out_the_next_batch_gathers() -> None:
    desk = Desk(in_flight_max=2)
    for question in (1, 2, 3, 4):
        desk.submit(question)
        await desk.settle()
    assert desk.batches == [[1], [2]]
    desk.open.set()
    await desk.settle()
    assert desk.batches == [[1], [2], [3, 4]]
    assert desk.answers == [1, 2, 3, 4]


async def test_a_batch_has_a_limit() -> None:
    desk = Desk(batch_max=3, in_flight_max=1)
    desk.open.set()
    desk.submit(*range(8))
    await desk.settle()
    await desk.settle()
    assert desk.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert desk.answers == list(range(8))


async def test_the_deadline_counts_from_the_oldest_arrival() -> None:
    desk = Desk(in_flight_max=1, timeout=1.0)
    loop = asyncio.get_running_loop()
    desk.submit(1)
    await desk.settle()
    arrived = loop.time()
    desk.submit(2)
    await asyncio.sleep(0.1)
    desk.submit(3)
    desk.open.set()
    await desk.settle()
    assert desk.batches[1] == [2, 3]
    assert desk.deadlines[1] == pytest.approx(arrived + 1.0, abs=0.05)


async def test_what_goes_wrong_reaches_every_asker_and_ends_there() -> None:
    desk = Desk()
    desk.error = StoreUnavailable("x")
    desk.open.set()
    desk.submit(1, 2)
    await desk.settle()
    assert desk.answers == [desk.error, desk.error]
    desk.error = None
    desk.submit(3)
    await desk.settle()
    assert desk.answers[2:] == [3]


async def test_what_has_waited_its_time_does_not_wait_for_another_call() -> None:
    """Whether the call before it fails or not."""
    for error in (None, StoreUnavailable("x")):
        desk = Desk(batch_max=1, in_flight_max=1, timeout=0.1)
        desk.submit(*range(50))
        desk.batcher.submit(50, fail)
        await asyncio.sleep(0.15)
        desk.submit(51)
        desk.error = error
        desk.open.set()
        await desk.settle()
        assert desk.batches == [[0], [51]]
        assert desk.answers == [error or 0, *[OVERDUE] * 49, error or 51]


async def test_pauses_lengthen_the_wait_of_those_that_waited_alone() -> None:
    """Else each pause of a busy process would let all later questions wait for longer, too."""
    desk = Desk(batch_max=1, in_flight_max=1, timeout=0.3)
    desk.submit(0)
    await desk.settle()
    for question in (1, 2, 3):  # one waits at all times
        desk.submit(question)
        await asyncio.sleep(0.07)
        time.sleep(0.5)  # noqa: ASYNC251
        await asyncio.sleep(0.1)
    asked = time.monotonic()
    desk.submit(4)
    await asyncio.sleep(0.35)
    desk.open.set()
    await desk.settle()
    assert time.monotonic() - asked < 0.6, "a pause of the test itself"
    assert desk.answers[:5].count(OVERDUE) == 4


async def test_an_asker_that_fails_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.submit(1)
    desk.batcher.submit(2, fail)
    desk.submit(3)
    desk.open.set()
    await desk.settle()
    assert desk.answers == [1, 3]
    assert "a callback of a check failed" in caplog.text


async def test_cancelled_callers_harm_nobody(store: SessionStore) -> None:
    made = [await store.create(usuario, "x") for usuario in range(20)]

    async def one(index: int) -> None:
        sesion = made[index % 20]
        task = asyncio.create_task(store.find(sesion.Token_Sesion))
        if index % 3 == 0:
            for _ in range(index % 7):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            found = await task
            assert found is not None
            assert found.ID_Sesion == sesion.ID_Sesion

    for _ in range(20):
        await asyncio.gather(*(one(index) for index in range(300)))


async def test_checks_of_any_slots_share_calls(redis_server: RedisServer, redis: Any) -> None:
    store = open_store(redis_server.url)
    made = [await store.create(usuario, "x") for usuario in range(100)]
    redis.config_resetstat()
    asked = [sesion.Token_Sesion for sesion in made] + [tokens.make(7) for _ in range(100)]
    found = await asyncio.gather(*(store.find(token) for token in asked))
    assert [sesion and sesion.ID_Sesion for sesion in found] == [
        sesion.ID_Sesion for sesion in made
    ] + [None] * 100
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 4  # of 64
    await store.aclose()
