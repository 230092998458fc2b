"""An event loop with a clock of its own, which jumps to the next timer instead of waiting for it: a
test of seconds takes no time, and a task that would wait for ever is found out at once."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

Result = TypeVar("Result")


class _JumpingSelector(selectors.SelectSelector):
    """Watches no socket. Instead of waiting for a timer, it moves the clock to it."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self.complaints: list[dict[str, Any]] = []
        """What the loop complains of: each would be lines in a log."""
        self.set_exception_handler(lambda _, context: self.complaints.append(context))

    def time(self) -> float:
        return self._jumping.now

    def pause(self, seconds: float) -> None:
        """Time passes, and the loop does nothing meanwhile: as when its process is stopped."""
        self._jumping.now += seconds


def run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run it on a loop with a clock of its own; nothing may be left for the loop to complain of."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(work())
    assert loop.complaints == []
    return result


CLOCK = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
"""In the place of the module ``time``, where code under test runs on a VirtualLoop."""


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test on a VirtualLoop."""

    @functools.wraps(test)
    def run_test(*fixtures: Any, **named: Any) -> None:
        run(functools.partial(test, *fixtures, **named))

    return run_test
