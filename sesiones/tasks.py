"""Helpers for asyncio: a deadline that lets input be read first, single flight, a majority vote,
and a value for each event loop. Of Redis they know only its errors."""

import asyncio
import contextlib
import os
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Sequence,
)
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakSet

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

Result = TypeVar("Result")
Value = TypeVar("Value")

MALFORMED_REPLY_ERRORS = AttributeError, LookupError, TypeError, ValueError
"""Raised while unpacking a reply of an unexpected shape, for example from a server that is not the
configured Redis."""

READ_FIRST_SECONDS = 0.001
"""How long a timer that is due lets the event loop poll its sockets before it calls back."""
PAUSED_SECONDS_MAX = 0.05
"""How long at the most, when the timer itself is late. The process was paused then, perhaps just
before it wrote a command, and the reply has yet to come."""


class ReadFirstTimer:
    """Calls back at a time (of ``loop.time()``), after the input that has arrived by then was read.

    uvloop runs timers before it polls its sockets. So after a pause of the process (SIGSTOP, a
    virtual machine that stalls) every timer would fire before the replies are read that arrived
    during the pause. A second, short timer lets the loop poll; the callback is then queued behind
    the tasks that the input has woken.
    """

    __slots__ = ("_callback", "_handle", "_loop", "_when")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._callback = callback
        self._when = when
        self._handle: asyncio.Handle = loop.call_at(when, self._due)

    def _due(self) -> None:
        late_seconds = self._loop.time() - self._when
        seconds = max(READ_FIRST_SECONDS, min(late_seconds, PAUSED_SECONDS_MAX))
        self._handle = self._loop.call_later(seconds, self._polled)

    def _polled(self) -> None:
        self._handle = self._loop.call_soon(self._callback)

    def cancel(self) -> None:
        self._handle.cancel()


class Deadline:
    """Like ``asyncio.timeout_at(when)``, but with a ReadFirstTimer. Raises TimeoutError."""

    def __init__(self, when: float) -> None:
        self._when = when
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._timer = ReadFirstTimer(loop, self._when, lambda: self._timeout.reschedule(0))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)


class FallbackFuture(asyncio.Future[Any]):
    """A future that no task waits for as long as all goes well. ``fall_back(self)`` is called once,
    and may start a task that waits for it: when an exception is set, or when the future is not done
    at the deadline, in the loop's time."""

    __slots__ = ("_fall_back", "_timer", "fell_back")

    def __init__(
        self, deadline: float, fall_back: Callable[["asyncio.Future[Any]"], object]
    ) -> None:
        super().__init__()
        self._fall_back = fall_back
        self.fell_back = False
        self._timer = self.get_loop().call_at(deadline, self._needs_task)

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        self._timer.cancel()

    def set_exception(self, exception: type | BaseException) -> None:
        super().set_exception(exception)
        self.exception()  # the task may end before it waits for this
        if not self.fell_back:
            self._needs_task()

    def _needs_task(self) -> None:
        self._fall_back(self)
        self.fell_back = True
        self._timer.cancel()


def background(work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    """A task that may be unfinished when its loop is closed by hand. asyncio would log an error for
    it; as for the tasks of asyncio.gather(), it does not."""
    task = asyncio.create_task(work)
    setattr(task, "_log_destroy_pending", False)  # noqa: B010
    return task


class SingleFlight(Generic[Result]):
    """Work of which one run serves all callers that wait for it. A cancelled caller does not end
    the run."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        self._work = work
        self._task: asyncio.Task[Result] | None = None
        self._callers = 0
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and every caller has its result."""
        return not self._running and not self._callers

    @property
    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin a run, unless the work is running."""
        if not self._running and not self._closed:
            self._task = background(self._work())
            self._task.add_done_callback(self._done)

    async def __call__(self) -> Result:
        self.start()
        task = self._task
        if task is not None:
            self._callers += 1
            try:
                await asyncio.wait({task})
            finally:
                self._callers -= 1
        if task is None or task.cancelled():
            raise RedisConnectionError("closed")
        return task.result()

    def _done(self, task: "asyncio.Task[Result]") -> None:
        if task is self._task:  # the next one may have begun already
            self._task = None
        retrieve_exception(task)  # even if every caller was cancelled

    def close(self) -> None:
        """Cancel the run, and start no other."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """Close, and wait until the run has ended."""
        self.close()
        if self._task is not None:
            await asyncio.wait({self._task})


def retrieve_exception(future: "asyncio.Future[Any]") -> None:
    """A done callback, so that asyncio does not log an exception that was never retrieved."""
    if not future.cancelled():
        future.exception()


async def majority(votes: Sequence[Coroutine[Any, Any, bool]], yes: int = 0) -> bool:
    """Whether more than half of the votes, and of ``yes`` further votes that are a yes, say yes.
    Returns as soon as the outcome is decided and cancels the remaining votes. A failed vote counts
    as a no."""
    waiting = {background(vote) for vote in votes}
    needed = (len(waiting) + yes) // 2 + 1
    try:
        while yes < needed <= yes + len(waiting):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with contextlib.suppress(RedisError, OSError, *MALFORMED_REPLY_ERRORS):
                    yes += task.result()
        return yes >= needed
    finally:
        cancel(waiting)


def cancel(tasks: "Collection[asyncio.Future[Any]]") -> None:
    """Cancel the tasks, without waiting for their end."""
    for task in tasks:
        task.add_done_callback(retrieve_exception)
        task.cancel()


class PerLoop(Generic[Value]):
    """One value for each event loop: made when a loop first asks, closed when that loop ends. A
    loop that asks again while it ends gets the closed value, because another would stay open.

    Sockets, futures and tasks belong to the loop that made them. In another loop they fail, or wait
    for ever. A program that calls ``asyncio.run()`` several times, or in several threads, has
    several loops.

    A process that was forked has none of its parent's values, because both would use the same
    sockets.
    """

    _all: ClassVar["WeakSet[PerLoop[Any]]"] = WeakSet()

    def __init__(
        self, make: Callable[[], Value], close: Callable[[Value], Awaitable[None]]
    ) -> None:
        self._make = make
        self._close = close
        self._values: dict[asyncio.AbstractEventLoop, tuple[Value, object]] = {}
        self._closed: dict[asyncio.AbstractEventLoop, Value] = {}
        """The values of loops that are ending."""
        self._inherited: list[object] = []
        """Kept, because a socket that is collected would be taken from its parent's selector."""
        self._all.add(self)

    def get(self) -> Value:
        """The running loop's value."""
        loop = asyncio.get_running_loop()
        known = self._values.get(loop)
        if known is not None:
            return known[0]
        if loop in self._closed:
            return self._closed[loop]
        value = self._make()
        for others in self._values, self._closed:
            for other in list(others):
                if other.is_closed():  # without loop.shutdown_asyncgens(), or after it
                    others.pop(other, None)
        closer = self._closer(loop, value)
        with contextlib.suppress(StopIteration):
            closer.asend(None).send(None)  # up to its yield, which waits for nothing
        self._values[loop] = value, closer
        return value

    async def _closer(
        self, loop: asyncio.AbstractEventLoop, value: Value
    ) -> AsyncGenerator[None, None]:
        # asyncio.run() closes the loop's unfinished asynchronous generators after it has cancelled
        # every task. So this runs while the loop still works, and no task needs the value. Only
        # another generator that is closed with this one may still ask for it.
        try:
            yield
        finally:
            self._closed[loop] = value
            self._values.pop(loop, None)
            await self._close(value)

    def existing(self) -> list[Value]:
        """The values of all loops, for reading."""
        return [value for value, _ in list(self._values.values())]

    @classmethod
    def _forked(cls) -> None:
        for each in cls._all:
            each._inherited.append(each._values)
            each._values = {}


os.register_at_fork(after_in_child=PerLoop._forked)
