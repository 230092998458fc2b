"""Worker processes: start them, watch them, replace those that die, end them in bounded time.

A socket pair, the line, connects each worker with the supervisor. The worker sends a byte on it
twice a second from its event loop, so a silent line means that the worker hangs. The worker's end
reads as closed when the supervisor is gone, whatever ended it.

Nothing that fails here ends the supervisor. When a worker cannot be started, for instance because
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
BEAT_SECONDS = 0.5
HANG_SECONDS = 5.0
"""A worker that is silent for so long is killed."""
START_SECONDS = 30.0
"""The same before its first byte."""
RETRY_SECONDS = 1.0
"""Between two tries to start a worker."""
KILLED_SECONDS = 0.25
"""What a killed process may take to be gone."""

_SPAWN = get_context("spawn")


@dataclass
class _Worker:
    process: SpawnProcess
    line: socket.socket
    patience_seconds: float = START_SECONDS
    """How much longer it may be silent."""
    has_served: bool = False

    def heard(self) -> bool:
        with suppress(OSError):
            return bool(self.line.recv(4096))
        return False


class Supervisor:
    """Keeps so many processes that run ``target(line, listeners, *arguments)``, until stop().

    They have ``stop_seconds`` to end after that; those that have not ended then are killed.
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
        """A signal handler."""
        if not self._stopping:
            self._stop_at = time.monotonic()
        self._stopping = True

    def run(self) -> None:
        """Until stop() is called."""
        # Where it was ignored when this process started, the kernel would keep no exit codes, and
        # a worker that has died would seem to live.
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
        line, theirs = socket.socketpair()
        try:
            with theirs:
                resource_tracker.ensure_running()
                process = _SPAWN.Process(
                    target=self._target, args=(theirs, self._listeners, *self._arguments)
                )
                # A Ctrl-C reaches the whole process group: while a worker imports its program, it
                # would be a traceback.
                with signals.held():
                    process.start()
        except BaseException:
            line.close()
            raise
        line.setblocking(False)
        return _Worker(process, line)

    def _watch(self) -> None:
        """Until a worker is heard of, or for a turn."""
        events: list[Any] = [worker.line for worker in self._workers]
        events += [worker.process.sentinel for worker in self._workers]
        try:
            connection.wait(events, TURN_SECONDS)
        except OSError:  # more than this process may now have open
            time.sleep(TURN_SECONDS)
        if self._stopping:  # a Ctrl-C reaches the workers, too: they have not died
            return
        # A pause of this very process, or of the whole machine, is not the workers' silence.
        now = time.monotonic()
        elapsed = min(now - self._looked_at, TURN_SECONDS)
        self._looked_at = now
        for worker in self._workers.copy():
            if worker.heard():
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
        logger.warning("worker [%s] died: exit code %s", process.pid, process.exitcode)
        self._workers.remove(worker)
        worker.line.close()
        process.close()
        if not worker.has_served:  # nor will the next one, perhaps
            self._start_at = time.monotonic() + RETRY_SECONDS

    def _end_all(self) -> None:
        deadline = (self._stop_at or time.monotonic()) + self._stop_seconds
        # Left open, it would take connections that no process will serve.
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
            worker.line.close()
