"""Metrics: counted in cells of memory, which http/operations.py shows in Prometheus's text.

Counting may take a few hundred nanoseconds of a check, less than one call of prometheus-client. So
each process adds to plain cells, for a batch of checks at a time, and /metrics shows their sums.
Each worker of a service has a process slot in one file in memory, so that any worker can answer
/metrics for all. A worker that replaces a dead one takes over its slot and clears the gauges there:
so no counter ever goes back.
"""

import fcntl
import itertools
import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sesiones.shared_memory import SharedMemory

SLOT_BYTES = mmap.ALLOCATIONGRANULARITY

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
        """The number of cells of one series. A histogram has its buckets and their sum."""
        return len(self.bounds) + 2 if self.bounds else 1


OPERATIONS = (
    *("check", "create", "update", "logout", "logout_all"),
    *("list", "end_one", "end_others", "end_user", "revoke"),
)

FAMILIES = (
    CHECKS := Family(
        "counter",
        "sesiones_checks",
        "Tokens checked; missing: no well-formed one was sent, and Redis was not asked.",
        "outcome",
        ("valid", "invalid", "missing", "unavailable"),
    ),
    CACHE_LOOKUPS := Family(
        "counter",
        "sesiones_cache_lookups",
        "Checks where there is a near-cache; hit: answered from memory, and counted as valid too.",
        "outcome",
        ("hit", "miss"),
    ),
    CACHE_ENTRIES := Family("gauge", "sesiones_cache_entries", "Answers in memory."),
    CACHE_INVALIDATIONS := Family(
        "counter",
        "sesiones_cache_invalidations",
        "Ended and changed sessions that the near-cache was told of, by Redis or by this node.",
    ),
    CACHE_LEASE_LOST := Family(
        "counter",
        "sesiones_cache_lease_lost",
        "Subscriptions to a master that were lost, and with each every answer of that master.",
    ),
    CACHE_LEASE_MISSING := Family(
        "gauge",
        "sesiones_cache_lease_missing",
        "Masters that are asked about every check, because there is no subscription to them.",
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
    UPDATED := Family("counter", "sesiones_sessions_updated", "Updates that changed a session."),
    ENDED := Family(
        "counter",
        "sesiones_sessions_ended",
        "Sessions ended before they expired; limit: by a new one of a user who had the most; "
        "failover: once more, for they had come back; unindexed: a use found that their index had "
        "lost them; undone: their login could not end the session that it replaces.",
        "reason",
        (
            *("logout", "logout_all", "others", "id", "operator", "replaced", "limit"),
            *("undone", "failover", "unindexed"),
        ),
    ),
)

STATUSES = (200, 201, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 431, 500, 501, 503)
"""Every HTTP status that the service answers with."""

SERVICE_FAMILIES = (
    HTTP_RESPONSES := Family(
        "counter",
        "sesiones_http_responses",
        "HTTP responses; those of the paths of health and metrics are not counted.",
        "status",
        tuple(map(str, STATUSES)),
    ),
    HTTP_CONNECTIONS := Family("gauge", "sesiones_http_connections", "Open HTTP connections."),
    PROCESS_CPU := Family(
        "counter", "process_cpu_seconds", "CPU time of all workers, user and system."
    ),
    PROCESS_MEMORY := Family(
        "gauge",
        "process_resident_memory_bytes",
        "Resident memory of all workers; what they share counts for each.",
    ),
    PROCESS_FILES := Family("gauge", "process_open_fds", "Open file descriptors of all workers."),
    PROCESS_FILES_MAX := Family(
        "gauge", "process_max_fds", "The most that all workers may have, by their soft limit."
    ),
    PROCESS_START := Family(
        "gauge",
        "process_start_time_seconds",
        "When the worker that has run the longest was started, in Unix time.",
    ),
)
"""Those of the service alone. A store in an application has FAMILIES, and the application has
metrics of its own process."""

_ALL = FAMILIES + SERVICE_FAMILIES
_starts = itertools.accumulate((len(f.values) * f.width for f in _ALL), initial=0)
_FIRST = dict(zip((family.name for family in _ALL), _starts, strict=False))
_FROM_MEMORY = sum(len(family.values) * family.width for family in _ALL)
"""A cell that no family has: sums() adds it to others."""
_WIDTH = _FROM_MEMORY + 1
assert 8 * _WIDTH < SLOT_BYTES, "a process slot must hold every cell and a last byte without one"


def cell(family: Family, value: str = "") -> int:
    """The index of the first cell of a series."""
    return _FIRST[family.name] + family.values.index(value) * family.width


_CHECK = cell(OPERATION_SECONDS, "check")
_VALID, _INVALID, _UNAVAILABLE = (cell(CHECKS, v) for v in ("valid", "invalid", "unavailable"))
_REDIS, _BATCH, _SLIDES = cell(REDIS_SECONDS), cell(BATCH), cell(SLIDES)
_CHECKS_IN_FLIGHT = cell(IN_FLIGHT, "check")
_HITS, _MISSES = cell(CACHE_LOOKUPS, "hit"), cell(CACHE_LOOKUPS, "miss")
_ENTRIES = cell(CACHE_ENTRIES)
_RESPONSES = {status: cell(HTTP_RESPONSES, str(status)) for status in STATUSES}
_OK = _RESPONSES[200]
_START = cell(PROCESS_START)


class ProcessSlots(SharedMemory):
    """A slot of cells for each process."""

    def claim(self) -> "memoryview[float]":
        """A slot that no living process has. The kernel releases the lock of a slot when its
        process ends, in whatever way."""
        for slot in itertools.count():
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except OSError:
                continue
            # Writing the last byte, which holds no cell, makes the file long enough.
            os.pwrite(self._descriptor, b"\0", (slot + 1) * SLOT_BYTES - 1)
            cells = mmap.mmap(self._descriptor, SLOT_BYTES, offset=slot * SLOT_BYTES)
            return memoryview(cells).cast("d")
        raise AssertionError

    def read(self) -> "list[memoryview[float]]":
        """A copy of every slot."""
        size = os.fstat(self._descriptor).st_size
        data = memoryview(os.pread(self._descriptor, size, 0))
        starts = range(0, size, SLOT_BYTES)
        return [data[start : start + SLOT_BYTES].cast("d") for start in starts]


class Metrics:
    """What this process counts. With ``slots``, sums() covers every process of the service."""

    def __init__(self, slots: ProcessSlots | None = None) -> None:
        self._slots = slots
        self._cells: memoryview[float] = (
            memoryview(bytearray(SLOT_BYTES)).cast("d") if slots is None else slots.claim()
        )
        for family in _ALL:
            if family.kind == "gauge":  # a dead process may have left a value
                for value in family.values:
                    self._cells[cell(family, value)] = 0

    def checked(self, asked: Sequence[float], answers: Sequence[object]) -> float:
        """Count checks that were answered together. ``asked`` has the time.monotonic() of each, in
        ascending order. Returns the seconds that the first one took."""
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
        """Count a batch of checks that goes to Redis."""
        cells = self._cells
        cells[_CHECKS_IN_FLIGHT] += size
        cells[_BATCH + bisect_left(SIZES, size)] += 1
        cells[_BATCH + len(SIZES) + 1] += size

    def batch_over(self, size: int) -> None:
        """Count the end of a batch, answered or not."""
        self._cells[_CHECKS_IN_FLIGHT] -= size

    def found_in_memory(self) -> None:
        """Count a check that was answered from memory. sums() counts it as valid too."""
        self._cells[_HITS] += 1

    @property
    def responses_from_memory(self) -> "memoryview[float]":
        """The one cell of such checks whose answer was a whole response, to add to. sums() counts
        them as hits, as valid and as responses."""
        return self._cells[_FROM_MEMORY : _FROM_MEMORY + 1]

    def filled(self, misses: int, entries: int) -> None:
        """Count checks that asked Redis despite the cache, and by how many its entries changed."""
        cells = self._cells
        cells[_MISSES] += misses
        cells[_ENTRIES] += entries

    def slid(self, count: int) -> None:
        """Count checks that moved Ultima_Actividad on."""
        self._cells[_SLIDES] += count

    def redis_replied(self, seconds: float) -> None:
        """Count a reply to a call of a script."""
        self._cells[_REDIS + bisect_left(SECONDS, seconds)] += 1
        self._cells[_REDIS + len(SECONDS) + 1] += seconds

    @property
    def successes(self) -> "memoryview[float]":
        """The one cell of responses with the status 200, to add to."""
        return self._cells[_OK : _OK + 1]

    def responded(self, status: int) -> None:
        """Count an HTTP response."""
        self._cells[_RESPONSES[status]] += 1

    def add(self, family: Family, value: str = "", count: int = 1) -> None:
        """Add to a counter."""
        self._cells[cell(family, value)] += count

    def get(self, family: Family) -> float:
        """What this process's slot has, perhaps from the process before."""
        return self._cells[cell(family)]

    def set(self, family: Family, value: float) -> None:
        self._cells[cell(family)] = value

    def begun(self, operation: str) -> None:
        """Count the start of an operation that is no check."""
        self._cells[cell(IN_FLIGHT, operation)] += 1

    def over(self, operation: str, seconds: float) -> None:
        """Count the end of an operation that is no check."""
        cells, first = self._cells, cell(OPERATION_SECONDS, operation)
        cells[first + bisect_left(SECONDS, seconds)] += 1
        cells[first + len(SECONDS) + 1] += seconds
        cells[cell(IN_FLIGHT, operation)] -= 1

    def sums(self) -> list[float]:
        """Every cell, summed over the processes of the service."""
        slots = [self._cells] if self._slots is None else self._slots.read()
        sums = [sum(column) for column in zip(*slots, strict=True)]
        sums[_HITS] += sums[_FROM_MEMORY]
        sums[_OK] += sums[_FROM_MEMORY]
        sums[_VALID] += sums[_HITS]
        sums[_START] = min((slot[_START] for slot in slots if slot[_START]), default=0)
        return sums
