"""Worker processes: start them, watch them, replace those that die, end them in bounded time.

A socket pair, the heartbeat, connects each worker with the supervisor. The worker sends a byte on
it twice a second from its event loop, so a worker whose heartbeat is silent hangs. The worker's end
reads as closed when the supervisor is gone, whatever ended it.

No failure of a worker ends the supervisor. When a worker cannot be started, for instance because
there is no free file descriptor, the supervisor tries again.
"""

import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

from sesiones import signals

logger = logging.getLogger("sesiones.workers")

TURN_SECONDS = 0.25
"""How long the supervisor waits for an event before it looks at its workers again."""
BEAT_SECONDS = 0.5
HANG_SECONDS = 5.0
"""A worker whose heartbeat is silent for so long is killed."""
START_SECONDS = 30.0
"""The same before its first heartbeat."""
RETRY_SECONDS = 1.0
"""The time between two tries to start a worker."""
KILLED_SECONDS = 0.25
"""How long a killed process may take to end."""

_SPAWN = get_context("spawn")


@dataclass
class _Worker:
    process: SpawnProcess
    heartbeat: socket.socket
    patience_seconds: float = START_SECONDS
    """How much longer its heartbeat may be silent."""
    has_served: bool = False

    def has_beaten(self) -> bool:
        """Whether a heartbeat has come since the last look."""
        with suppress(OSError):
            return bool(self.heartbeat.recv(4096))
        return False


def _end_of(exit_code: int | None) -> str:
    """What an exit code says. A SIGKILL that no other line explains is often the kernel's, which is
    out of memory."""
    if exit_code is not None and exit_code < 0:
        with suppress(ValueError):  # a real-time signal has no name
            return f"exit code {exit_code}, {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


class Supervisor:
    """Keeps ``count`` processes running ``target(heartbeat, listeners, *arguments)``, until stop().

    After that they have ``stop_seconds`` to end; those that have not ended then are killed.
    """

    def __init__(
        self,
        count: int,
        stop_seconds: float,
        target: Callable[..., None],
        listeners: Sequence[socket.socket],
        *arguments: Any,
    ) -> None:
        self._count = count
        self._stop_seconds = stop_seconds
        self._target = target
        self._listeners = listeners
        self._arguments = arguments
        self._workers: list[_Worker] = []
        self._stopping = False
        self._stop_at = 0.0
        self._failing = False
        self._start_at = self._looked_at = time.monotonic()

    def stop(self, *_: object) -> None:
        """End the workers and return from run(). A signal handler."""
        if not self._stopping:
            self._stop_at = time.monotonic()
        self._stopping = True

    def run(self) -> None:
        """Watch over the workers until stop() is called."""
        # If SIGCHLD was ignored when this process started, the kernel keeps no exit codes, and a
        # worker that has died would seem to live.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            while not self._stopping:
                self._start_missing()
                self._watch()
        finally:
            self._end_all()

    def _start_missing(self) -> None:
        while (
            len(self._workers) < self._count
            and not self._stopping
            and time.monotonic() >= self._start_at
        ):
            try:
                self._workers.append(self._start())
            except Exception as error:
                if not self._failing:
                    logger.error("a worker cannot be started, trying again: %s", error)
                self._failing = True
                self._start_at = time.monotonic() + RETRY_SECONDS
            else:
                self._failing = False

    def _start(self) -> _Worker:
        heartbeat, theirs = socket.socketpair()
        try:
            with theirs:
                resource_tracker.ensure_running()
                process = _SPAWN.Process(
                    target=self._target, args=(theirs, self._listeners, *self._arguments)
                )
                # A Ctrl-C reaches the whole process group. A worker that is still importing its
                # program would end with a traceback.
                with signals.held():
                    process.start()
        except BaseException:
            heartbeat.close()
            raise
        heartbeat.setblocking(False)
        return _Worker(process, heartbeat)

    def _watch(self) -> None:
        """Wait for a worker's heartbeat or end, for at most a turn, and look at every worker."""
        events: list[Any] = [worker.heartbeat for worker in self._workers]
        events += [worker.process.sentinel for worker in self._workers]
        try:
            connection.wait(events, TURN_SECONDS)
        except OSError:  # the limit of open files was lowered below what is open
            time.sleep(TURN_SECONDS)
        if self._stopping:  # a Ctrl-C reaches the workers too: those that end have not died
            return
        # A pause of this process, or of the whole machine, does not count as the workers' silence.
        now = time.monotonic()
        elapsed = min(now - self._looked_at, TURN_SECONDS)
        self._looked_at = now
        for worker in self._workers.copy():
            if worker.has_beaten():
                worker.has_served = True
                worker.patience_seconds = HANG_SECONDS
            elif not worker.process.is_alive():
                self._remove(worker)
            else:
                worker.patience_seconds -= elapsed
                if worker.patience_seconds <= 0:
                    logger.error("worker [%s] hangs and is killed", worker.process.pid)
                    worker.process.kill()
                    worker.patience_seconds = HANG_SECONDS

    def _remove(self, worker: _Worker) -> None:
        process = worker.process
        logger.error("worker [%s] died: %s", process.pid, _end_of(process.exitcode))
        self._workers.remove(worker)
        worker.heartbeat.close()
        process.close()
        if not worker.has_served:  # the next one may fail in the same way
            self._start_at = time.monotonic() + RETRY_SECONDS

    def _end_all(self) -> None:
        deadline = (self._stop_at or time.monotonic()) + self._stop_seconds
        # Left open, a listening socket would take connections that no process serves.
        for listener in self._listeners:
            listener.close()
        for worker in self._workers:
            with suppress(OSError):
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            if worker.process.is_alive():
                logger.error("worker [%s] does not end and is killed", worker.process.pid)
                worker.process.kill()
                worker.process.join(KILLED_SECONDS)
            worker.heartbeat.close()
