"""The queue of checks on a virtual clock: which questions share a call, for how long they wait, and
that no caller harms another."""

import asyncio
from typing import Any, cast

import pytest

from sesiones.sesion import StoreUnavailable
from sesiones.store import batching
from sesiones.store.batching import Batcher
from tests.harness.virtual_loop import CLOCK, VirtualLoop, virtual


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "time", CLOCK)


OVERDUE = StoreUnavailable("overdue")


class Asked:
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
        """Ask them in one turn of the event loop."""
        for question in questions:
            self.batcher.submit(question, self.answers.append)

    async def settle(self) -> None:
        """Let the event loop do what it can without waiting for a timer."""
        for _ in range(10):
            await asyncio.sleep(0)


def fail(_: object) -> None:
    raise RuntimeError("a bug of the caller")


@virtual
async def test_questions_of_one_turn_are_one_batch() -> None:
    asked = Asked()
    asked.submit(1, 2, 3)
    assert asked.batches == []  # nothing goes out before the turn is over
    await asked.settle()
    assert asked.batches == [[1, 2, 3]]
    asked.open.set()
    await asked.settle()
    assert asked.answers == [1, 2, 3]


@virtual
async def test_lone_question_waits_for_nothing() -> None:
    asked = Asked()
    asked.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asked.batches == [[1]]


@virtual
async def test_next_batch_gathers_while_calls_are_in_flight() -> None:
    asked = Asked(in_flight_max=2)
    for question in (1, 2, 3, 4):
        asked.submit(question)
        await asked.settle()
    assert asked.batches == [[1], [2]]
    asked.open.set()
    await asked.settle()
    assert asked.batches == [[1], [2], [3, 4]]
    assert asked.answers == [1, 2, 3, 4]


@virtual
async def test_batch_has_at_most_batch_max_questions() -> None:
    asked = Asked(batch_max=3, in_flight_max=1)
    asked.open.set()
    asked.submit(*range(8))
    await asked.settle()
    await asked.settle()
    assert asked.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert asked.answers == list(range(8))


@virtual
async def test_deadline_counts_from_the_oldest_arrival() -> None:
    asked = Asked(in_flight_max=1, timeout=1.0)
    loop = asyncio.get_running_loop()
    asked.submit(1)
    await asked.settle()
    arrived = loop.time()
    asked.submit(2)
    await asyncio.sleep(0.1)
    asked.submit(3)
    asked.open.set()
    await asked.settle()
    assert asked.batches[1] == [2, 3]
    assert asked.deadlines[1] == pytest.approx(arrived + 1.0)


@virtual
async def test_error_of_a_call_reaches_its_callers_alone() -> None:
    asked = Asked()
    asked.error = StoreUnavailable("x")
    asked.open.set()
    asked.submit(1, 2)
    await asked.settle()
    assert asked.answers == [asked.error, asked.error]
    asked.error = None
    asked.submit(3)
    await asked.settle()
    assert asked.answers[2:] == [3]


@virtual
async def test_questions_are_answered_when_every_task_of_the_loop_is_cancelled() -> None:
    """A program may cancel all of its tasks and go on. A callback has no task of its own."""
    asked = Asked(batch_max=2)
    asked.submit(1, 2, 3)
    await asked.settle()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asked.settle()
    assert asked.answers == [OVERDUE] * 3
    asked.open.set()
    asked.submit(4)
    await asked.settle()
    assert asked.answers[3:] == [4]


@virtual
async def test_overdue_question_does_not_wait_for_another_call() -> None:
    """The call before it may fail or not."""
    for error in None, StoreUnavailable("x"):
        asked = Asked(batch_max=1, in_flight_max=1, timeout=0.1)
        asked.submit(*range(50))
        asked.batcher.submit(50, fail)
        await asyncio.sleep(0.15)
        asked.submit(51)
        asked.error = error
        asked.open.set()
        await asked.settle()
        assert asked.batches == [[0], [51]]
        assert asked.answers == [error or 0, *[OVERDUE] * 49, error or 51]


@virtual
async def test_question_that_waited_through_a_pause_is_not_overdue() -> None:
    loop = cast(VirtualLoop, asyncio.get_running_loop())
    asked = Asked(batch_max=1, in_flight_max=1, timeout=0.3)
    asked.submit(0)
    await asked.settle()
    asked.submit(1)
    await asyncio.sleep(0.07)
    loop.pause(0.5)
    await asyncio.sleep(0.01)
    asked.open.set()
    await asked.settle()
    assert asked.answers == [0, 1]


@virtual
async def test_pause_lengthens_the_time_of_the_questions_that_waited_alone() -> None:
    """Otherwise each pause of a busy process would let all later questions wait for longer, too."""
    loop = cast(VirtualLoop, asyncio.get_running_loop())
    asked = Asked(batch_max=1, in_flight_max=1, timeout=0.3)
    asked.submit(0)
    await asked.settle()
    for question in (1, 2, 3):  # one waits at all times
        asked.submit(question)
        await asyncio.sleep(0.07)
        loop.pause(0.5)
        await asyncio.sleep(0.1)
    asked.submit(4)
    await asyncio.sleep(0.35)
    asked.open.set()
    await asked.settle()
    assert asked.answers[:5].count(OVERDUE) == 4


@virtual
async def test_callback_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked()
    asked.submit(1)
    asked.batcher.submit(2, fail)
    asked.submit(3)
    asked.open.set()
    await asked.settle()
    assert asked.answers == [1, 3]
    assert "a callback of a check failed" in caplog.text
