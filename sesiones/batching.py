"""Many small questions, few round trips: the front of the store's check.

What is asked in one turn of the event loop goes out together; while ``in_flight_max`` calls are
out, the next ones gather. So batches grow with the load, and a lone question waits for nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

logger = logging.getLogger("sesiones.batching")


class Batcher(Generic[Question, Answer]):
    """Asks in batches through ``ask(questions, deadline)``, which returns an answer each, in order.

    The deadline is in the loop's time: ``timeout_seconds`` after the oldest question came, but
    half of that is left for the call, so that nobody is refused for the one who waited longest.

    An answer may be an exception; what ``ask`` raises is the answer of the whole batch. An asker
    that has left does not matter to the others.
    """

    def __init__(
        self,
        ask: Callable[[list[Question], float], Awaitable[Sequence[Answer | Exception]]],
        timeout_seconds: float,
        *,
        batch_max: int,
        in_flight_max: int,
    ) -> None:
        self._ask = ask
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._timeout_seconds = timeout_seconds
        self._waiting: list[tuple[Question, Callable[[Answer | Exception], None], float]] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def submit(self, question: Question, done: Callable[[Answer | Exception], None]) -> None:
        """Ask; ``done`` is called with the answer, or with what went wrong."""
        loop = asyncio.get_running_loop()
        self._waiting.append((question, done, loop.time()))
        if not self._scheduled:
            self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._in_flight) < self._in_flight_max:
            self._scheduled = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        batch, self._waiting = self._waiting[: self._batch_max], self._waiting[self._batch_max :]
        oldest = batch[0][2]
        deadline = max(oldest + self._timeout_seconds, loop.time() + self._timeout_seconds / 2)
        task = loop.create_task(self._run(batch, deadline))
        self._in_flight.add(task)
        task.add_done_callback(self._finish)
        if self._waiting:
            self._schedule(loop)

    async def _run(
        self,
        batch: list[tuple[Question, Callable[[Answer | Exception], None], float]],
        deadline: float,
    ) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._ask([question for question, _, _ in batch], deadline)
        except Exception as error:
            answers = [error] * len(batch)
            self._give_up(error)
        for (_, done, _), answer in zip(batch, answers, strict=True):
            try:
                done(answer)
            except Exception:
                logger.exception("an asker failed")

    def _give_up(self, error: Exception) -> None:
        """What has waited its whole time shares the answer of the batch before it: else, while
        nobody answers, each batch would wait anew and the queue grow without end."""
        oldest = asyncio.get_running_loop().time() - self._timeout_seconds
        late = 0
        while late < len(self._waiting) and self._waiting[late][2] <= oldest:
            late += 1
        overdue, self._waiting = self._waiting[:late], self._waiting[late:]
        for _, done, _ in overdue:
            done(error)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._waiting and not self._scheduled:
            self._schedule(task.get_loop())
