"""What the service does on its worst day, scenario by scenario, against bars.

A scenario is a module with one function, ``play(short)``: it breaks something under load, compares
what the service had acknowledged with what is true afterwards, and yields a Bar for each promise as
soon as it is measured. ``short``: in seconds, as the test suite does; what then says nothing on a
busy machine is left out. Whatever keeps it from measuring at all is an exception.
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bar:
    """A promise, what was measured (in words, with units), and whether that keeps it."""

    promise: str
    measured: str
    met: bool


class NotInstalledError(Exception):
    """A program that a scenario needs, and how to get it."""


def resident(pid: int) -> int:
    """The memory that the process has in use, in kB."""
    found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found  # no zombie's
    return int(found[1])
