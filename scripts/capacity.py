"""How many nodes and masters a load needs, on paper: the tables of docs/capacity.md.

    python -m scripts.capacity          prints the tables

The costs are measured by commands of this repository, which are named with them. What no
measurement can know, such as how long a session lives, are assumptions: change them here.
``python -m scripts.costs --predict`` compares the model with a load.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from scripts.command_line import run
from sesiones.store.near_cache import ENTRIES_MAX


class Coefficient(NamedTuple):
    value: float
    unit: str
    what: str
    command: str


BENCH = "make bench"
COSTS = "python -m scripts.costs"
MILLION = "python -m scripts.chaos million"

NODE_CHECK = Coefficient(15.6, "us", "CPU of a node: a check that Redis answers", BENCH)
NODE_HIT = Coefficient(7.5, "us", "CPU of a node: a check from memory", BENCH)
ON_CLUSTER = Coefficient(
    1.17,
    "times",
    "the same check on a Cluster",
    "python -m scripts.bench --only fast cluster",
)
NODE_ENTRY = Coefficient(
    10, "us", "CPU of a node: an entry and its first hit, beside the check", BENCH
)
NODE_LOGIN = Coefficient(209, "us", "CPU of a node: a login", COSTS)
NODE_LOGOUT = Coefficient(179, "us", "CPU of a node: a logout", COSTS)
NODE_MESSAGE = Coefficient(8.5, "us", "CPU of a node: a message of one subscription", COSTS)
REDIS_CHECK = Coefficient(4.3, "us", "CPU of Redis: a check", BENCH)
REDIS_SLIDE = Coefficient(11.5, "us", "CPU of Redis: a slide, beside its check", COSTS)
REDIS_LOGIN = Coefficient(52.9, "us", "CPU of Redis: a login", COSTS)
REDIS_LOGOUT = Coefficient(37.8, "us", "CPU of Redis: a logout", COSTS)
REDIS_DELIVERY = Coefficient(4.38, "us", "CPU of Redis: a message, for each subscriber", COSTS)
REDIS_BUS = Coefficient(3, "us", "CPU of Redis: a message of another node of the Cluster", COSTS)
SESSION_BYTES = Coefficient(345, "bytes", "memory of Redis: a session", MILLION)
ENTRY_BYTES = Coefficient(1900, "bytes", "memory of a worker: an entry of the near-cache", COSTS)
WORKER_BYTES = Coefficient(4.8e07, "bytes", "memory of a worker without entries", COSTS)
CALLER_BYTES = Coefficient(591, "bytes", "between caller and node: a check", COSTS)
REDIS_BYTES = Coefficient(143, "bytes", "between node and Redis: a check", COSTS)
COEFFICIENTS = [value for value in globals().values() if isinstance(value, Coefficient)]

UTILISATION = 0.6
"""Of a core, at the busiest time of the day: beyond, waiting times grow fast."""
MASTER_BYTES_MAX = 24e9
"""A larger master takes minutes to load, to copy to a replica and to fork."""
FAN_OUT_MAX = 0.2
"""The share of a master's core, and of a worker's, that messages may take. Beyond, users are
divided among several deployments."""
ACTIVE_SHARE = 0.1
"""Of the sessions: those that are used within one minute of the busiest hour."""
SESSION_SECONDS = 8 * 3600
"""From login to the end of a session, on average."""
LOGOUT_SHARE = 0.5
"""Of the sessions: those that are ended, which is published. The others expire."""
TOUCH_SECONDS = CACHE_SECONDS = 60

CHECKS = 10_000, 1_000_000, 10_000_000
SESSIONS = 1_000_000, 100_000_000, 1_000_000_000


def hit_ratio(session_rate: float, entry_seconds: float, sessions: float = 0) -> float:
    """Of one event loop that is asked about each session at this rate, by independent callers.

    An entry is made by a miss and answers for ``entry_seconds``; then the next check is a miss. So
    there are ``session_rate * entry_seconds`` hits for each miss. ``sessions``: how many there are;
    when they are more than ENTRIES_MAX, only so many can have an entry.
    """
    hits = session_rate * entry_seconds / (1 + session_rate * entry_seconds)
    return min(hits, ENTRIES_MAX / sessions) if sessions else hits


class Load(NamedTuple):
    """A second of the busiest hour. ``active``: sessions in use within a minute."""

    checks: float
    active: float
    sessions: float
    logins: float
    logouts: float


def load_of(checks: float, sessions: float) -> Load:
    logins = sessions / SESSION_SECONDS
    active = min(ACTIVE_SHARE * sessions, 60 * checks)
    return Load(checks, active, sessions, logins, LOGOUT_SHARE * logins)


@dataclass(frozen=True)
class Plan:
    """One deployment. ``workers``: event loops, a core each; ``fan_out``: the share of a master's
    core that messages take, and of a worker's; ``cold``: the cores that a master would need for its
    checks if no entry counted, as after a failover."""

    workers: int
    masters: int
    hits: float
    master_utilisation: float
    fan_out: tuple[float, float]
    cold: float


@dataclass(frozen=True)
class Row:
    """``deployments``: among which the users are divided; ``each``: one of them."""

    checks: float
    sessions: float
    cached: bool
    deployments: int
    each: Plan


def plan(load: Load, *, cached: bool) -> Plan:
    """The smallest number of workers and masters, whose costs depend on each other."""
    workers = 1
    masters = max(1, math.ceil(load.sessions * SESSION_BYTES.value / MASTER_BYTES_MAX))
    while True:
        hits = 0.0
        if cached:
            rate = load.checks / workers / load.active
            hits = hit_ratio(rate, CACHE_SECONDS, load.active)
        node_us, node_message_us = _of_workers(load, hits, masters, cached=cached)
        redis_us, redis_message_us = _of_masters(load, hits, workers, masters, cached=cached)
        enough_workers = workers * (UTILISATION * 1e6 - node_message_us) >= node_us
        enough_masters = masters * (UTILISATION * 1e6 - redis_message_us) >= redis_us
        too_many = max(node_message_us, redis_message_us) > FAN_OUT_MAX * 1e6
        if too_many or (enough_workers and enough_masters):
            return Plan(
                workers,
                masters,
                hits,
                (redis_us / masters + redis_message_us) / 1e6,
                (redis_message_us / 1e6, node_message_us / 1e6),
                load.checks * REDIS_CHECK.value / masters / 1e6,
            )
        # By a hundredth at least, so that a thousand workers are found soon.
        workers += 0 if enough_workers else max(1, workers // 100)
        masters += 0 if enough_masters else 1


def _of_workers(load: Load, hits: float, masters: int, *, cached: bool) -> tuple[float, float]:
    """Microseconds a second: of all workers together, and of each for messages."""
    miss = NODE_CHECK.value * (ON_CLUSTER.value if masters > 1 else 1)
    miss += NODE_ENTRY.value if cached else 0
    checks = load.checks * (hits * NODE_HIT.value + (1 - hits) * miss)
    writes = load.logins * NODE_LOGIN.value + load.logouts * NODE_LOGOUT.value
    # Each master of a Cluster passes on the messages of all.
    messages = load.logouts * masters * NODE_MESSAGE.value if cached else 0.0
    return checks + writes, messages


def _of_masters(
    load: Load, hits: float, workers: int, masters: int, *, cached: bool
) -> tuple[float, float]:
    """Microseconds a second: of all masters together, and of each for messages."""
    slides = min(load.checks, load.active / TOUCH_SECONDS)
    checks = load.checks * (1 - hits) * REDIS_CHECK.value + slides * REDIS_SLIDE.value
    writes = load.logins * REDIS_LOGIN.value + load.logouts * REDIS_LOGOUT.value
    bus = load.logouts * (masters - 1) / masters * REDIS_BUS.value
    deliveries = load.logouts * workers * REDIS_DELIVERY.value if cached else 0.0
    return checks + writes, bus + deliveries


def row(checks: float, sessions: float, *, cached: bool) -> Row:
    deployments = 1
    while True:
        each = plan(load_of(checks / deployments, sessions / deployments), cached=cached)
        if max(each.fan_out) <= FAN_OUT_MAX:
            return Row(checks, sessions, cached, deployments, each)
        deployments += 1


HEAD = (
    *("checks/s", "sessions", "deployments", "workers", "masters", "Redis memory"),
    *("callers", "Redis", "hits", "master's core", "messages: master", "worker", "cold"),
)


def table(*, cached: bool) -> str:
    """In Markdown. The numbers of workers, masters and bytes are of all deployments together."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for checks in CHECKS:
        for sessions in SESSIONS:
            lines.append(f"| {' | '.join(_cells(row(checks, sessions, cached=cached)))} |")
    return "\n".join(lines)


def _cells(row: Row) -> Iterator[str]:
    each = row.each
    yield f"{row.checks:,}"
    yield f"{row.sessions:,}"
    yield f"{row.deployments:,}"
    yield f"{_rounded(row.deployments * each.workers):,}"
    yield f"{row.deployments * each.masters:,}"
    yield f"{row.sessions * SESSION_BYTES.value / 1e9:,.1f} GB"
    yield _bits(row.checks * CALLER_BYTES.value)
    yield _bits(row.checks * (1 - each.hits) * REDIS_BYTES.value)
    yield f"{each.hits:.0%}" if row.cached else "-"
    yield f"{each.master_utilisation:.0%}"
    yield from (f"{share:.1%}" for share in each.fan_out)
    yield f"{each.cold:.1f}"


def _rounded(number: int) -> int:
    """To two digits, as the search finds it."""
    digits = len(str(number)) - 2
    return round(number, -digits) if digits > 0 else number


def _bits(bytes_a_second: float) -> str:
    return f"{8 * bytes_a_second / 1e9:,.2f} Gbit/s"


def coefficients() -> str:
    lines = ["| coefficient | value | from |", "|---|---|---|"]
    lines += [
        f"| {one.what} | {one.value:,.10g} {one.unit} | `{one.command}` |" for one in COEFFICIENTS
    ]
    return "\n".join(lines)


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(coefficients())
    for cached in False, True:
        print(f"\n{'With' if cached else 'Without'} the near-cache:\n\n{table(cached=cached)}")
    return 0


if __name__ == "__main__":
    run(main)
