"""Metrics: counted in cells of memory, which http/operations.py shows in Prometheus's text.

A check may spend a few hundred nanoseconds on being counted, less than one call of
prometheus-client's. So each process adds to plain cells, a batch of checks at a time, and
prometheus-client writes their sums when it is asked. The cells of the workers of one service are
rows of one file in memory: whichever is asked sees them all. A worker that replaces a dead one
takes its row over, so that no counter ever goes back, and empties its gauges.
"""

import fcntl
import itertools
import mmap
import os
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any, Literal

ROW_BYTES = mmap.ALLOCATIONGRANULARITY

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Family:
    """A metric: one series for each value of its label, or one without a label."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)
    bounds: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Cells of one series: of a histogram, its buckets and their sum."""
        return len(self.bounds) + 2 if self.bounds else 1


OPERATIONS = ("check", "create", "update", "logout", "logout_all")

FAMILIES = (
    CHECKS := Family(
        "counter",
        "sesiones_checks",
        "Tokens checked; missing: no well-formed one was sent, and Redis was not asked.",
        "outcome",
        ("valid", "invalid", "missing", "unavailable"),
    ),
    SLIDES := Family("counter", "sesiones_slides", "Checks that moved Ultima_Actividad on."),
    OPERATION_SECONDS := Family(
        "histogram",
        "sesiones_operation_seconds",
        "From asking the store to its answer: waiting for a batch, Redis, a second try.",
        "operation",
        OPERATIONS,
        SECONDS,
    ),
    IN_FLIGHT := Family(
        "gauge",
        "sesiones_operations_in_flight",
        "Operations that Redis has not answered yet; checks once their batch is out.",
        "operation",
        OPERATIONS,
    ),
    BATCH := Family(
        "histogram",
        "sesiones_check_batch_size",
        "Checks in one call of Redis.",
        bounds=SIZES,
    ),
    REDIS_SECONDS := Family(
        "histogram",
        "sesiones_redis_seconds",
        "One call of a script, until Redis's reply.",
        bounds=SECONDS,
    ),
    REDIS_ERRORS := Family(
        "counter",
        "sesiones_redis_errors",
        "Calls without a reply in time, without a connection, refused by Redis; unconfirmed: what "
        "too few replicas have.",
        "reason",
        ("timeout", "connection", "refused", "unconfirmed"),
    ),
    CREATED := Family("counter", "sesiones_sessions_created", "Sessions made."),
    ENDED := Family(
        "counter",
        "sesiones_sessions_ended",
        "Sessions ended before they expired; limit: by a new one of a user who had the most; "
        "failover: once more, for they had come back; unindexed: a use found that their index had "
        "lost them.",
        "reason",
        ("logout", "logout_all", "limit", "operator", "failover", "unindexed"),
    ),
)

_starts = itertools.accumulate((len(f.values) * f.width for f in FAMILIES), initial=0)
_FIRST = dict(zip((family.name for family in FAMILIES), _starts, strict=False))
_WIDTH = sum(len(family.values) * family.width for family in FAMILIES)


def cell(family: Family, value: str = "") -> int:
    """The first cell of a series."""
    return _FIRST[family.name] + family.values.index(value) * family.width


_CHECK = cell(OPERATION_SECONDS, "check")
_VALID, _INVALID, _UNAVAILABLE = (cell(CHECKS, v) for v in ("valid", "invalid", "unavailable"))
_REDIS, _BATCH, _SLIDES = cell(REDIS_SECONDS), cell(BATCH), cell(SLIDES)
_CHECKS_IN_FLIGHT = cell(IN_FLIGHT, "check")


class Rows:
    """A file in memory with a row of cells for each process, which it hands to those it spawns."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _memory_file() if descriptor is None else descriptor

    def __reduce__(self) -> Any:
        return _attach, (DupFd(self._descriptor),)

    def claim(self) -> "memoryview[float]":
        """A row that no living process has: its lock lasts as long as its process, however that
        ends."""
        for row in itertools.count():
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
            except OSError:
                continue
            # The last byte, which holds no cell: the file only ever grows.
            os.pwrite(self._descriptor, b"\0", (row + 1) * ROW_BYTES - 1)
            cells = mmap.mmap(self._descriptor, ROW_BYTES, offset=row * ROW_BYTES)
            return memoryview(cells).cast("d")
        raise AssertionError

    def read(self) -> "list[memoryview[float]]":
        """Every row as it stands."""
        size = os.fstat(self._descriptor).st_size
        data = memoryview(os.pread(self._descriptor, size, 0))
        starts = range(0, size, ROW_BYTES)
        return [data[start : start + ROW_BYTES].cast("d") for start in starts]


def _attach(descriptor: Any) -> Rows:
    return Rows(descriptor.detach())


def _memory_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("sesiones-metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Metrics:
    """What this process counts, and the others of its service; ``rows``: where they share it."""

    def __init__(self, rows: Rows | None = None) -> None:
        self._rows = rows
        self._cells: memoryview[float] = (
            memoryview(bytearray(ROW_BYTES)).cast("d") if rows is None else rows.claim()
        )
        for operation in OPERATIONS:
            self._cells[cell(IN_FLIGHT, operation)] = 0  # a predecessor's

    def checked(self, asked: Sequence[float], answers: Sequence[object]) -> float:
        """Checks answered together: when each was asked, of time.monotonic() and in order, and
        their answers. Returns the seconds that the first one took."""
        cells, count, now = self._cells, len(asked), time.monotonic()
        failed = sum([isinstance(answer, Exception) for answer in answers])
        valid = len([*filter(None, answers)]) - failed
        cells[_VALID] += valid
        if valid < count:
            cells[_UNAVAILABLE] += failed
            cells[_INVALID] += count - valid - failed
        cells[_CHECK + len(SECONDS) + 1] += count * now - sum(asked)
        slowest = bisect_left(SECONDS, now - asked[0])
        if slowest == bisect_left(SECONDS, now - asked[-1]):
            cells[_CHECK + slowest] += count
        else:
            for moment in asked:
                cells[_CHECK + bisect_left(SECONDS, now - moment)] += 1
        return now - asked[0]

    def batch_sent(self, size: int) -> None:
        """Checks went to Redis."""
        cells = self._cells
        cells[_CHECKS_IN_FLIGHT] += size
        cells[_BATCH + bisect_left(SIZES, size)] += 1
        cells[_BATCH + len(SIZES) + 1] += size

    def batch_over(self, size: int) -> None:
        """Redis answered them, or did not."""
        self._cells[_CHECKS_IN_FLIGHT] -= size

    def slid(self, count: int) -> None:
        """So many of them."""
        self._cells[_SLIDES] += count

    def redis_replied(self, seconds: float) -> None:
        """To a call of a script."""
        self._cells[_REDIS + bisect_left(SECONDS, seconds)] += 1
        self._cells[_REDIS + len(SECONDS) + 1] += seconds

    def add(self, family: Family, value: str = "", count: int = 1) -> None:
        """To a counter."""
        self._cells[cell(family, value)] += count

    def begun(self, operation: str) -> None:
        """One that is no check."""
        self._cells[cell(IN_FLIGHT, operation)] += 1

    def over(self, operation: str, seconds: float) -> None:
        """One that is no check: how long it took."""
        cells, first = self._cells, cell(OPERATION_SECONDS, operation)
        cells[first + bisect_left(SECONDS, seconds)] += 1
        cells[first + len(SECONDS) + 1] += seconds
        cells[cell(IN_FLIGHT, operation)] -= 1

    def sums(self) -> list[float]:
        """Every cell, summed over the processes of the service."""
        rows = [self._cells] if self._rows is None else self._rows.read()
        return [sum(column) for column in zip(*rows, strict=True)]
