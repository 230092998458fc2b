"""The queue of checks: what goes out together, for how long a question waits, and that no caller
harms another. On a virtual clock."""

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
        """Ask them in one turn of the event loop."""
        for question in questions:
            self.batcher.submit(question, self.answers.append)

    async def settle(self) -> None:
        """Let the event loop do what it can without waiting for a timer."""
        for _ in range(10):
            await asyncio.sleep(0)


def fail(_: object) -> None:
    raise RuntimeError("the asker's own affair")


@virtual
async def test_questions_of_one_turn_are_one_batch() -> None:
    desk = Desk()
    desk.submit(1, 2, 3)
    assert desk.batches == []  # nothing goes out before the turn is over
    await desk.settle()
    assert desk.batches == [[1, 2, 3]]
    desk.open.set()
    await desk.settle()
    assert desk.answers == [1, 2, 3]


@virtual
async def test_lone_question_waits_for_nothing() -> None:
    desk = Desk()
    desk.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert desk.batches == [[1]]


@virtual
async def test_next_batch_gathers_while_calls_are_in_flight() -> None:
    desk = Desk(in_flight_max=2)
    for question in (1, 2, 3, 4):
        desk.submit(question)
        await desk.settle()
    assert desk.batches == [[1], [2]]
    desk.open.set()
    await desk.settle()
    assert desk.batches == [[1], [2], [3, 4]]
    assert desk.answers == [1, 2, 3, 4]


@virtual
async def test_batch_has_at_most_batch_max_questions() -> None:
    desk = Desk(batch_max=3, in_flight_max=1)
    desk.open.set()
    desk.submit(*range(8))
    await desk.settle()
    await desk.settle()
    assert desk.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert desk.answers == list(range(8))


@virtual
async def test_deadline_counts_from_the_oldest_arrival() -> None:
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
    assert desk.deadlines[1] == pytest.approx(arrived + 1.0)


@virtual
async def test_error_of_a_call_reaches_its_callers_alone() -> None:
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


@virtual
async def test_overdue_question_does_not_wait_for_another_call() -> None:
    """Whether the call before it fails or not."""
    for error in None, StoreUnavailable("x"):
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


@virtual
async def test_question_that_waited_through_a_pause_is_not_overdue() -> None:
    loop = cast(VirtualLoop, asyncio.get_running_loop())
    desk = Desk(batch_max=1, in_flight_max=1, timeout=0.3)
    desk.submit(0)
    await desk.settle()
    desk.submit(1)
    await asyncio.sleep(0.07)
    loop.pause(0.5)
    await asyncio.sleep(0.01)
    desk.open.set()
    await desk.settle()
    assert desk.answers == [0, 1]


@virtual
async def test_pause_lengthens_the_time_of_the_questions_that_waited_alone() -> None:
    """Else each pause of a busy process would let all later questions wait for longer, too."""
    loop = cast(VirtualLoop, asyncio.get_running_loop())
    desk = Desk(batch_max=1, in_flight_max=1, timeout=0.3)
    desk.submit(0)
    await desk.settle()
    for question in (1, 2, 3):  # one waits at all times
        desk.submit(question)
        await asyncio.sleep(0.07)
        loop.pause(0.5)
        await asyncio.sleep(0.1)
    desk.submit(4)
    await asyncio.sleep(0.35)
    desk.open.set()
    await desk.settle()
    assert desk.answers[:5].count(OVERDUE) == 4


@virtual
async def test_callback_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.submit(1)
    desk.batcher.submit(2, fail)
    desk.submit(3)
    desk.open.set()
    await desk.settle()
    assert desk.answers == [1, 3]
    assert "an asker failed" in caplog.text
