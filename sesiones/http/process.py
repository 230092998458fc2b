"""What a process of the service uses of its machine: CPU time, memory and files."""

import os
import resource
import time
from contextlib import suppress

from sesiones.metrics import (
    PROCESS_CPU,
    PROCESS_FILES,
    PROCESS_FILES_MAX,
    PROCESS_MEMORY,
    PROCESS_START,
    Metrics,
)

_FILES = "/proc/self/fd"


class Process:
    """This process, whose slot of the metrics gets what measure() finds."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._cpu_before = metrics.get(PROCESS_CPU)
        """Of the dead processes whose slot this one has taken over: a counter does not go back."""
        metrics.set(PROCESS_START, time.time())

    def measure(self) -> None:
        metrics = self._metrics
        metrics.set(PROCESS_CPU, self._cpu_before + time.process_time())
        metrics.set(PROCESS_FILES_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        with suppress(OSError):  # a machine without /proc, or no file descriptor is free
            with open("/proc/self/statm", "rb") as file:
                pages = int(file.read().split()[1])
            metrics.set(PROCESS_MEMORY, pages * resource.getpagesize())
            # Linux has the number as the size of the folder, from 6.2 on.
            metrics.set(PROCESS_FILES, os.stat(_FILES).st_size or len(os.listdir(_FILES)))
