"""Batches: many questions, few round trips. The checks use it.

Questions of one turn of the event loop go out in one call. While ``in_flight_max`` calls are in
flight, later questions gather for the next one. So batches grow with the load, and a lone question
does not wait.
"""

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
_Waiting = tuple[Question, Callable[[Answer | Exception], None], float, float]
"""A question, the callback for its answer, when it was asked, and when it is overdue."""
Answered = Callable[[Sequence[Answer | Exception]], None]

TICK_SECONDS = 0.05
"""How often a batcher with questions looks whether the process was paused."""

logger = logging.getLogger("sesiones.store")


@dataclass(eq=False, slots=True)
class _Call(Generic[Question, Answer]):
    """A batch that is out. A KeyboardInterrupt or a bug can cost it its answer. Then it must not
    count as in flight for ever, so it is given up after a number of ticks: a pause of the process
    counts as one."""

    batch: list[_Waiting[Question, Answer]]
    ticks_left: int
    over: asyncio.Event | None = None
    """What aclose() waits for."""


def _due(waiting: _Waiting[Any, Any]) -> float:
    return waiting[3]


class Batcher(Generic[Question, Answer]):
    """Asks in batches through ``ask(questions, deadline, answered)``, which calls ``answered`` with
    the answers in order; a second call has no effect.

    The deadline is in the loop's time, which is time.monotonic()'s: ``timeout_seconds`` after the
    oldest question came, plus the time for which the process was paused meanwhile. But at least
    half of ``timeout_seconds`` is left for the call, so that a question that has waited long does
    not fail the others of its batch.

    An answer may be an exception. ``overdue()`` is the answer to a question that could not go out
    within ``timeout_seconds``. A callback that raises does not affect the others. ``observe`` is
    told when the questions answered together were asked, and their answers. ``on_sent`` and
    ``on_over`` are called once for each call with the number of its questions, ``on_over`` also if
    it is given up. ``on_idle`` is called once no question has been left for up to two ticks.

    A call that has no answer in twice the time is given up: its questions are overdue.
    """

    def __init__(
        self,
        ask: Callable[[list[Question], float, Answered[Answer]], object],
        timeout_seconds: float,
        *,
        batch_max: int,
        in_flight_max: int,
        overdue: Callable[[], Exception],
        observe: Callable[[list[float], Sequence[Answer | Exception]], None],
        on_sent: Callable[[int], None] = lambda _: None,
        on_over: Callable[[int], None] = lambda _: None,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._ask = ask
        self._overdue = overdue
        self._observe = observe
        self._on_sent = on_sent
        self._on_over = on_over
        self._on_idle = on_idle
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._timeout_seconds = timeout_seconds
        self._waiting: list[_Waiting[Question, Answer]] = []
        self._in_flight: set[_Call[Question, Answer]] = set()
        self._scheduled = False
        self._ticking = False
        self._tick_due = 0.0

    def submit(self, question: Question, done: Callable[[Answer | Exception], None]) -> None:
        """Ask. ``done`` is called with the answer, which may be an exception."""
        loop = asyncio.get_running_loop()
        asked = time.monotonic()
        self._waiting.append((question, done, asked, asked + self._timeout_seconds))
        if not self._scheduled:
            self._schedule(loop)
        if not self._ticking:
            self._tick_later(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._in_flight) < self._in_flight_max:
            self._scheduled = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        now = time.monotonic()
        self._notice_pause(now)
        late = bisect_right(self._waiting, now, key=_due)
        if late:
            # Under overload, more is asked than answered: the queue would grow without end.
            overdue, self._waiting = self._waiting[:late], self._waiting[late:]
            self._answer(overdue, [self._overdue()] * late)
        if not self._waiting or len(self._in_flight) >= self._in_flight_max:
            return  # _tick() has scheduled this once more
        batch, self._waiting = self._waiting[: self._batch_max], self._waiting[self._batch_max :]
        call = _Call(batch, int(2 * self._timeout_seconds / TICK_SECONDS) + 2)
        self._in_flight.add(call)
        self._on_sent(len(batch))
        deadline = max(_due(batch[0]), now + self._timeout_seconds / 2)
        self._ask(
            [question for question, *_ in batch], deadline, partial(self._answered, loop, call)
        )
        if self._waiting:
            self._schedule(loop)

    def _tick_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticking = True
        self._tick_due = time.monotonic() + TICK_SECONDS
        loop.call_later(TICK_SECONDS, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._notice_pause(time.monotonic())
        if self._waiting or self._in_flight:
            self._tick_later(loop)
            self._schedule(loop)  # an interrupt may have cost _flush() its turn
            for call in [*self._in_flight]:
                call.ticks_left -= 1
                if call.ticks_left < 0:
                    self._answered(loop, call, [self._overdue()] * len(call.batch))
        else:
            self._ticking = False
            self._on_idle()

    def _notice_pause(self, now: float) -> None:
        """A late timer means that the process was paused (SIGSTOP, a virtual machine that stalls).
        The pause does not count against the questions that wait, and does not extend the time of
        those that were asked after it."""
        late_seconds = now - self._tick_due
        if self._ticking and late_seconds > TICK_SECONDS:
            self._tick_due = now
            due_max = now + self._timeout_seconds
            self._waiting = [
                (question, done, asked, min(due + late_seconds, due_max))
                for question, done, asked, due in self._waiting
            ]

    def _answered(
        self,
        loop: asyncio.AbstractEventLoop,
        call: "_Call[Question, Answer]",
        answers: Sequence[Answer | Exception],
    ) -> None:
        if call not in self._in_flight:
            return
        self._in_flight.remove(call)
        self._on_over(len(call.batch))
        try:
            self._answer(call.batch, answers)
        finally:
            if self._waiting and not self._scheduled:
                self._schedule(loop)
            if call.over is not None:
                call.over.set()

    def _answer(
        self, batch: list[_Waiting[Question, Answer]], answers: Sequence[Answer | Exception]
    ) -> None:
        self._observe([asked for _, _, asked, _ in batch], answers)
        for (_, done, *_), answer in zip(batch, answers, strict=True):
            try:
                done(answer)
            except Exception:
                logger.exception("a callback of a check failed")

    async def aclose(self, error: Exception) -> None:
        """Answer the questions that wait with the error, and wait for the calls in flight, which
        must end soon."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._answer(waiting, [error] * len(waiting))
        for call in [*self._in_flight]:
            if call in self._in_flight:
                call.over = call.over or asyncio.Event()
                await call.over.wait()
