"""Pipes that a test reads slowly or not at all."""

import fcntl
import os
from collections.abc import Generator


def narrow_pipe() -> tuple[int, int]:
    """The reading and the writing end of a pipe that holds one page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    return reading, writing


def lines_of(descriptor: int) -> Generator[str, None, None]:
    """The lines that are read from the descriptor, which closes with the generator."""
    with open(descriptor, encoding="utf-8") as stream:
        for line in stream:
            yield line.removesuffix("\n")
