"""The queue of checks on a virtual clock: which questions share a call, for how long they wait, and
that no caller harms another."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from sesiones.sesion import StoreUnavailable
from sesiones.store import batching
from sesiones.store.batching import Answered, Batcher
from sesiones.tasks import background
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

    def ask(self, questions: list[int], deadline: float, answered: Answered[int]) -> None:
        self.batches.append(questions)
        self.deadlines.append(deadline)
        background(self.answer(questions, answered))

    async def answer(self, questions: list[int], answered: Answered[int]) -> None:
        await self.open.wait()
        answered(questions if self.error is None else [self.error] * len(questions))

    def submit(self, *questions: int) -> None:
        """Ask them in one turn of the event loop."""
        for question in questions:
            self.batcher.submit(question, self.answers.append)

    async def settle(self) -> None:
        """Let the event loop do what it can without waiting for a timer."""
        for _ in range(10):
            await asyncio.sleep(0)


def batcher_on(
    ask: Callable[[list[int], float, Answered[int]], object], **options: Any
) -> Batcher[int, int]:
    return Batcher(
        ask,
        1.0,
        batch_max=1,
        in_flight_max=2,
        overdue=lambda: OVERDUE,
        observe=lambda *_: None,
        **options,
    )


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


@virtual
async def test_second_answer_to_a_call_has_no_effect() -> None:
    answered: list[Answered[int]] = []
    answers: list[object] = []
    batcher = batcher_on(lambda _, __, answer: answered.append(answer))
    batcher.submit(1, answers.append)
    await asyncio.sleep(0.01)
    batcher.submit(2, answers.append)
    for _ in range(2):
        answered[0]([10])
    await asyncio.sleep(0.01)
    assert answers == [10]
    answered[0]([11])
    answered[1]([20])
    assert answers == [10, 20]


@virtual
async def test_aclose_answers_what_waits_and_waits_for_calls_in_flight() -> None:
    asked = Asked(in_flight_max=2)
    for question in 1, 2, 3:
        asked.submit(question)
        await asked.settle()
    closing = asyncio.create_task(asked.batcher.aclose(OVERDUE))
    await asked.settle()
    assert asked.answers == [OVERDUE]
    assert not closing.done()
    asked.open.set()
    await closing
    assert asked.answers == [OVERDUE, 1, 2]


@virtual
async def test_calls_closed_twice_at_once_are_waited_for_twice() -> None:
    asked = Asked()
    asked.submit(1)
    await asked.settle()
    closing = [asyncio.create_task(asked.batcher.aclose(OVERDUE)) for _ in range(2)]
    await asked.settle()
    asked.open.set()
    async with asyncio.timeout(1):
        await asyncio.gather(*closing)
    assert asked.answers == [1]


@virtual
async def test_aclose_waits_for_no_question_that_comes_after_it() -> None:
    """Callers may ask again for as long as they get no answer, so that one is always in flight."""
    loop = asyncio.get_running_loop()
    batcher = batcher_on(lambda _, __, answered: loop.call_later(0.2, answered, [0]))

    def ask_again(_: object) -> None:
        batcher.submit(0, ask_again)

    batcher.submit(0, ask_again)
    await asyncio.sleep(0.1)
    batcher.submit(0, ask_again)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(0.3):
        await batcher.aclose(OVERDUE)


@virtual
async def test_no_more_calls_are_in_flight_than_may_be() -> None:
    """The questions come in the turn of the event loop in which it looks for a pause."""
    asked = Asked(batch_max=1, in_flight_max=2)
    loop = asyncio.get_running_loop()
    asked.submit(0)
    loop.call_at(loop.time() + batching.TICK_SECONDS - 5e-10, asked.submit, 1, 2, 3)
    await asyncio.sleep(1.5 * batching.TICK_SECONDS)
    assert asked.batches == [[0], [1]]


@virtual
async def test_each_call_begins_and_ends_once_whatever_becomes_of_it() -> None:
    sizes: list[int] = []
    answered: list[Answered[int]] = []
    answers: list[object] = []
    batcher = batcher_on(
        lambda _, __, answer: answered.append(answer),
        on_sent=sizes.append,
        on_over=lambda size: sizes.append(-size),
    )

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    batcher.submit(1, interrupt)
    batcher.submit(2, answers.append)
    await asyncio.sleep(0.01)
    assert sizes == [1, 1]
    with pytest.raises(KeyboardInterrupt):
        answered[0]([10])
    answered[0]([10])
    await asyncio.sleep(3)  # the second call is given up
    answered[1]([20])
    assert sizes == [1, 1, -1, -1]
    assert answers == [OVERDUE]
