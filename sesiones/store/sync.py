"""SessionStore for synchronous code: threads, Flask, Django, WSGI."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _blocking(
    method: Callable[Concatenate[SessionStore, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["SyncSessionStore", Parameters], Result]:
    @wraps(method)
    def call(
        self: "SyncSessionStore", /, *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        loop = self._loop()
        return self._run(loop, method(self._store, *arguments, **named))

    return call


class SyncSessionStore:
    """The methods of a SessionStore, which return their results instead of awaitables. Any number
    of threads may call them at once.

    They run in one event loop, which has a daemon thread of its own. The thread starts at the first
    call in each process, so a server may fork after it has made the store.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._threads: dict[int, _LoopThread] = {}
        """By the number of the process: a thread does not outlive a fork."""

    find = _blocking(SessionStore.find)
    create = _blocking(SessionStore.create)
    update = _blocking(SessionStore.update)
    end = _blocking(SessionStore.end)
    end_all = _blocking(SessionStore.end_all)
    end_others = _blocking(SessionStore.end_others)
    end_one = _blocking(SessionStore.end_one)
    end_user = _blocking(SessionStore.end_user)
    revoke = _blocking(SessionStore.revoke)
    list_sessions = _blocking(SessionStore.list_sessions)
    sessions = _blocking(SessionStore.sessions)

    def close(self) -> None:
        """Close the connections to Redis and end the thread, when no other thread uses the store
        any more."""
        thread = self._threads.pop(os.getpid(), None)
        if thread is not None:
            thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, too
            future.cancel()
            raise

    def _loop(self) -> asyncio.AbstractEventLoop:
        process = os.getpid()
        thread = self._threads.get(process)
        if thread is None:
            # No lock: one that another thread holds during a fork stays locked in the new process.
            # So several first calls may each start a thread, and all but one are closed again.
            try:
                made = _LoopThread()
            except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
                raise StoreUnavailable(f"the store's thread does not start: {error}") from error
            thread = self._threads.setdefault(process, made)
            if thread is not made:
                made.close()
        return thread.loop


class _LoopThread:
    """An event loop that runs in a daemon thread until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._closed = self.loop.create_future()
        self._thread = threading.Thread(target=self._serve, name="sesiones", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.loop.close()
            raise

    def close(self) -> None:
        """The store closes its connections when the loop ends, as with asyncio.run()."""
        self.loop.call_soon_threadsafe(self._closed.set_result, None)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        await self._closed
