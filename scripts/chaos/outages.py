"""Redis fails in every way that it can, again and again, under load: what each operation answers
meanwhile, how soon, and how soon all is well again."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import uvloop

from scripts.chaos import Bar, trial
from tests.harness.faults import cut_off, demoted, full, hung, misconf, noreplicas, stopped
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.traffic import Event, words

TIMEOUT_SECONDS = 0.25
RECOVERY_SECONDS = 1.0
NOISE_SECONDS = 1.0
"""What a busy machine may add in the short form."""

Allowed = Mapping[str, set[int]]
"""The statuses of each operation."""
WELL: Allowed = {
    # Those that race the session's end are 401 and 404; the ledger knows which may.
    "check": {200, 401},
    "check ended": {401},
    "create": {201},
    "update": {200, 404},
    "logout": {200, 401},
    "logoutAll": {200, 401},
}
OUT: Allowed = {operation: {503} for operation in WELL}
FULL: Allowed = {**WELL, "create": {503}, "update": {503}}
NO_WRITES: Allowed = {**OUT, "check": {200}, "check ended": {401}}

Fault = Callable[[RedisServer], AbstractContextManager[None]]
FAULTS: dict[str, tuple[Fault, str, Allowed]] = {
    "Redis stopped": (stopped, "503", OUT),
    "Redis hangs": (hung, "503", OUT),
    "out of memory": (full, "checks and logouts as always, POST and PUT 503", FULL),
    "MISCONF": (misconf, "checks as always, the rest 503", NO_WRITES),
    "NOREPLICAS": (noreplicas, "checks as always, the rest 503", NO_WRITES),
    "READONLY": (cut_off, "503", OUT),
    "READONLY, another is the master": (demoted, "503", OUT),
}
"""How, what is promised meanwhile, and which statuses that allows."""


class Window(NamedTuple):
    """One fault, on the monotonic clock: it comes between ``starting`` and ``begun``, and goes
    between ``ending`` and ``ended``."""

    starting: float
    begun: float
    ending: float
    ended: float


def play(short: bool) -> Iterator[Bar]:
    yield from uvloop.run(_play(short))


async def _play(short: bool) -> list[Bar]:
    nodes, rate, seconds = (1, 300, 0.4) if short else (2, 800, 25)
    hold, rest = (0.3, 0.1) if short else (3, 2)
    slack = NOISE_SECONDS if short else 0
    bars = []
    # Over TCP: on a unix socket Redis would still carry out what the service has given up.
    redis = RedisServer(port=str(free_port()))
    services = [Service(SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS)) for _ in range(nodes)]
    async with trial(redis, *services) as outages:
        traffic = outages.traffic
        await traffic.run(rate, rest * 5, "outages, first sessions")
        for name, (fault, promise, allowed) in FAULTS.items():
            if short and fault is demoted:  # it takes its time to copy the data
                continue

            async def suffer(fault: Fault = fault) -> Window:
                window = await asyncio.to_thread(_suffer, fault, redis, hold)
                await asyncio.sleep(rest)
                return window

            label = f"outages, {name}"
            events, windows = await outages.run(label, rate, seconds, suffer, repeat=True)
            found = judge(events, windows, allowed)
            missing = set() if short else WELL.keys() - found.statuses.keys()
            bars += [
                Bar(f"{name}: {promise}", found.words(), not found.wrong and not missing),
                Bar(
                    f"{name}: each answer within {2 * TIMEOUT_SECONDS} s, "
                    f"normal within {RECOVERY_SECONDS:.0f} s of its end",
                    f"{found.longest:.2f} s and {found.recovery:.2f} s at the most, "
                    f"{len(windows)} times; the client itself was up to {traffic.late:.2f} s late",
                    found.longest <= 2 * TIMEOUT_SECONDS + slack
                    and found.recovery <= RECOVERY_SECONDS + slack,
                ),
            ]
        await traffic.verify()
    known = traffic.known()
    return [
        *bars,
        Bar(
            "never a false success",
            f"{words(traffic.wrong)}; {known['created']:,} sessions, {known['ended']:,} ended",
            not traffic.wrong,
        ),
    ]


def _suffer(fault: Fault, redis: RedisServer, seconds: float) -> Window:
    starting = time.monotonic()
    with fault(redis):
        begun = time.monotonic()
        time.sleep(seconds)
        ending = time.monotonic()
    return Window(starting, begun, ending, time.monotonic())


class Found(NamedTuple):
    """What came of requests. ``statuses`` are those of requests that were sent and answered during
    a fault, by operation; ``wrong`` is what is not allowed at its time; ``longest`` an answer
    took; ``recovery``: how long after the end of a fault the last request was refused."""

    statuses: dict[str, Counter[int]]
    wrong: Counter[str]
    longest: float
    recovery: float

    def words(self) -> str:
        seen = ", ".join(
            f"{operation} " + "/".join(f"{status} ({n:,})" for status, n in counted.items())
            for operation, counted in sorted(self.statuses.items())
        )
        wrong = ", ".join(f"{what} ({n:,})" for what, n in self.wrong.items())
        return f"WRONG: {wrong}; {seen}" if wrong else seen


def judge(events: Sequence[Event], windows: Sequence[Window], allowed: Allowed) -> Found:
    statuses: dict[str, Counter[int]] = defaultdict(Counter)
    wrong: Counter[str] = Counter()
    longest = recovery = 0.0
    for event in events:
        answered = event.at + event.seconds
        fine = WELL[event.operation]
        for window in windows:
            if window.begun <= event.at and answered <= window.ending:
                statuses[event.operation][event.status] += 1
                fine = allowed[event.operation]
            elif window.starting <= answered and event.at <= window.ended + RECOVERY_SECONDS:
                fine = fine | allowed[event.operation]
                if event.status not in WELL[event.operation]:
                    recovery = max(recovery, answered - window.ended)
            else:
                continue
            longest = max(longest, event.seconds)
        if event.status not in fine:
            wrong[f"{event.operation} {event.status}"] += 1
    return Found(statuses, wrong, longest, recovery)
