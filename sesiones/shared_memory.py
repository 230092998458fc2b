"""Memory that the processes of one service share."""

import os
import sys
import tempfile
from multiprocessing.reduction import DupFd
from typing import Any, Self


class SharedMemory:
    """A file in memory. Pickled for a process that is being started, it gives that process the same
    file."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _memory_file() if descriptor is None else descriptor

    def __reduce__(self) -> Any:
        return self._attach, (DupFd(self._descriptor),)

    @classmethod
    def _attach(cls, descriptor: Any) -> Self:
        return cls(descriptor.detach())


def _memory_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("sesiones")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
