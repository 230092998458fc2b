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
from sesiones.redis_client.single import Server
from sesiones.store.near_cache import ENTRIES_MAX


class Coefficient(NamedTuple):
    value: float
    unit: str
    what: str
    command: str


COSTS = "python -m scripts.costs"
MILLION = "python -m scripts.chaos million"

NODE_HIT = Coefficient(5.61, "us", "CPU of a node: a check from memory", COSTS)
NODE_CHECK = Coefficient(12.1, "us", "CPU of a node: a check that Redis answers", COSTS)
NODE_ENTRY = Coefficient(19.3, "us", "CPU of a node: its entry in the near-cache, beside it", COSTS)
NODE_CALL = Coefficient(53.6, "us", "CPU of a node: a call of Redis, beside its checks", COSTS)
NODE_WAKE = Coefficient(32.1, "us", "CPU of a node: waking up, when it had nothing to do", COSTS)
NODE_LOGIN = Coefficient(219, "us", "CPU of a node: a login", COSTS)
NODE_LOGOUT = Coefficient(164, "us", "CPU of a node: a logout", COSTS)
NODE_MESSAGE = Coefficient(14.5, "us", "CPU of a node: a message of one subscription", COSTS)
REDIS_CHECK = Coefficient(1.8, "us", "CPU of Redis: a check", COSTS)
REDIS_CALL = Coefficient(10.9, "us", "CPU of Redis: a call, beside its checks", COSTS)
REDIS_WAKE = Coefficient(36.2, "us", "CPU of Redis: waking up, when it had nothing to do", COSTS)
REDIS_SLIDE = Coefficient(13, "us", "CPU of Redis: a slide, beside its check", COSTS)
REDIS_LOGIN = Coefficient(45.4, "us", "CPU of Redis: a login", COSTS)
REDIS_LOGOUT = Coefficient(35.3, "us", "CPU of Redis: a logout", COSTS)
REDIS_DELIVERY = Coefficient(3.89, "us", "CPU of Redis: a message, for each subscriber", COSTS)
REDIS_BUS = Coefficient(2.5, "us", "CPU of Redis: a message of another node of the Cluster", COSTS)
ENTRY_BYTES = Coefficient(1_820, "bytes", "memory of a worker: an entry of the near-cache", COSTS)
WORKER_BYTES = Coefficient(48_100_000, "bytes", "memory of a worker without entries", COSTS)
CALLER_BYTES = Coefficient(591, "bytes", "between caller and node: a check", COSTS)
CHECK_BYTES = Coefficient(135, "bytes", "between node and Redis: a check", COSTS)
CALL_BYTES = Coefficient(206, "bytes", "between node and Redis: a call, beside its checks", COSTS)
SESSION_BYTES = Coefficient(345, "bytes", "memory of Redis: a session, at the most", MILLION)
COEFFICIENTS = {name: value for name, value in globals().items() if isinstance(value, Coefficient)}

UTILISATION = 0.6
"""Of a core, at the busiest time of the day: beyond, waiting times grow fast."""
MASTER_BYTES_MAX = 24e9
"""A larger master takes minutes to load, to copy to a replica and to fork."""
FAN_OUT_MAX = 0.2
"""The share of a master's core, and of a worker's, that messages may take. Beyond, users are
divided among several deployments."""
DEPLOYMENTS = [2**bits for bits in range(13)]
"""Among which the users may be divided, by their buckets: a bucket has 12 bits."""
DIVIDING_SAVES = 0.1
"""The share of processes for which it is not worth dividing the users further."""
ACTIVE_SHARE = 0.1
"""Of the sessions: those that are used within one minute of the busiest hour."""
SESSION_SECONDS = 8 * 3600
"""From login to the end of a session, on average."""
LOGOUT_SHARE = 0.5
"""Of the sessions: those that are ended, which is published. The others expire."""
TOUCH_SECONDS = CACHE_SECONDS = 60
ROUND_TRIP_SECONDS = 0.0005
"""From sending a call to its reply, in one data centre."""

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


def batch_size(rate: float, round_trip_seconds: float = ROUND_TRIP_SECONDS) -> float:
    """How many checks a call has, on average, of one event loop that asks one master about so many
    a second.

    A check that comes while fewer than two calls are in flight makes a call of its own; while two
    are, the checks gather for the next one (sesiones/store/batching.py). If each check made a call,
    ``rate * round_trip_seconds`` of them would be in flight, and both would be in use for the share
    of time that Erlang's loss formula says. From that follows the size; it grows to half of the
    checks that come in a round trip.
    """
    calls, most = rate * round_trip_seconds, Server.in_flight_max
    states = [calls**number / math.factorial(number) for number in range(most + 1)]
    return min(1 + calls / most * states[-1] / sum(states), Server.batch_max)


def busy(work: float, waking: float, others: float = 0.0) -> float:
    """The share of its core that an event loop uses, if its work takes the share ``work``, and
    ``waking`` is the share that waking up for each event would take; ``others``: the share that
    other processes use.

    Only an event that comes while the loop sleeps wakes it. It is awake for ``busy / (1 - others)``
    of the time, because it has to wait for the core. At the limit it never sleeps, so plans do
    without this.
    """
    return (work + waking) / (1 + waking / (1 - others))


class CheckCosts(NamedTuple):
    """CPU time in microseconds."""

    node_hit: float
    node_check: float
    node_entry: float
    node_call: float
    redis_check: float
    redis_call: float

    def of_node(self, hits: float, batch: float, *, cached: bool) -> float:
        """For each check, if these are the share of hits and the checks in a call."""
        miss = self.node_check + self.node_call / batch + (self.node_entry if cached else 0)
        return hits * self.node_hit + (1 - hits) * miss

    def of_redis(self, hits: float, batch: float) -> float:
        """For each check."""
        return (1 - hits) * (self.redis_check + self.redis_call / batch)


CHECK_COSTS = CheckCosts(
    NODE_HIT.value,
    NODE_CHECK.value,
    NODE_ENTRY.value,
    NODE_CALL.value,
    REDIS_CHECK.value,
    REDIS_CALL.value,
)


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
    """One deployment. ``workers``: event loops, a core each; ``batch``: the checks in a call of
    Redis; ``fan_out``: the share of a master's core that messages take, and of a worker's;
    ``cold``: the cores that a master would need for its checks if no entry counted, as after a
    failover, and a worker."""

    workers: int
    masters: int
    hits: float
    batch: float
    master_utilisation: float
    fan_out: tuple[float, float]
    cold: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """``deployments``: among which the users are divided; ``each``: one of them."""

    checks: float
    sessions: float
    cached: bool
    deployments: int
    each: Plan

    @property
    def processes(self) -> int:
        return self.deployments * (self.each.workers + self.each.masters)


def plan(load: Load, *, cached: bool) -> Plan:
    """The smallest number of workers and masters, whose costs depend on each other."""
    workers = 1
    masters = max(1, math.ceil(load.sessions * SESSION_BYTES.value / MASTER_BYTES_MAX))
    while True:
        hits = 0.0
        if cached:
            rate = load.checks / workers / load.active
            hits = hit_ratio(rate, CACHE_SECONDS, load.active)
        batch = batch_size((1 - hits) * load.checks / workers / masters)
        node_us, node_message_us = _of_workers(load, hits, batch, masters, cached=cached)
        redis_us, redis_message_us = _of_masters(load, hits, batch, workers, masters, cached=cached)
        enough_workers = workers * (UTILISATION * 1e6 - node_message_us) >= node_us
        enough_masters = masters * (UTILISATION * 1e6 - redis_message_us) >= redis_us
        too_many = max(node_message_us, redis_message_us) > FAN_OUT_MAX * 1e6
        if too_many or (enough_workers and enough_masters):
            return Plan(
                workers,
                masters,
                hits,
                batch,
                (redis_us / masters + redis_message_us) / 1e6,
                (redis_message_us / 1e6, node_message_us / 1e6),
                _cold(load, workers, masters, cached=cached),
            )
        # By a hundredth at least, so that a thousand workers are found soon.
        workers += 0 if enough_workers else max(1, workers // 100)
        masters += 0 if enough_masters else 1


def _cold(load: Load, workers: int, masters: int, *, cached: bool) -> tuple[float, float]:
    """The cores that each master and each worker would need for its checks without any hits."""
    batch = batch_size(load.checks / workers / masters)
    redis_us = load.checks * CHECK_COSTS.of_redis(0, batch)
    node_us = load.checks * CHECK_COSTS.of_node(0, batch, cached=cached)
    return redis_us / masters / 1e6, node_us / workers / 1e6


def _of_workers(
    load: Load, hits: float, batch: float, masters: int, *, cached: bool
) -> tuple[float, float]:
    """Microseconds a second: of all workers together, and of each for messages."""
    checks = load.checks * CHECK_COSTS.of_node(hits, batch, cached=cached)
    writes = load.logins * NODE_LOGIN.value + load.logouts * NODE_LOGOUT.value
    # Each master of a Cluster passes on the messages of all.
    messages = load.logouts * masters * NODE_MESSAGE.value if cached else 0.0
    return checks + writes, messages


def _of_masters(
    load: Load, hits: float, batch: float, workers: int, masters: int, *, cached: bool
) -> tuple[float, float]:
    """Microseconds a second: of all masters together, and of each for messages."""
    slides = min(load.checks, load.active / TOUCH_SECONDS)
    checks = load.checks * CHECK_COSTS.of_redis(hits, batch) + slides * REDIS_SLIDE.value
    writes = load.logins * REDIS_LOGIN.value + load.logouts * REDIS_LOGOUT.value
    bus = load.logouts * (masters - 1) / masters * REDIS_BUS.value
    deliveries = load.logouts * workers * REDIS_DELIVERY.value if cached else 0.0
    return checks + writes, bus + deliveries


def row(checks: float, sessions: float, *, cached: bool) -> Row:
    """The fewest deployments in which messages take no more than they may, and the processes are no
    more than a tenth above the fewest that any number of deployments needs."""
    rows = []
    for number in DEPLOYMENTS:
        each = plan(load_of(checks / number, sessions / number), cached=cached)
        if max(each.fan_out) <= FAN_OUT_MAX:
            rows.append(Row(checks, sessions, cached, number, each))
    fewest = min(row.processes for row in rows)
    return next(row for row in rows if row.processes <= (1 + DIVIDING_SAVES) * fewest)


HEAD = (
    *("checks/s", "sessions", "deployments", "workers", "masters", "Redis memory"),
    *("callers", "Redis", "hits", "batch", "master's core", "messages: master", "worker"),
    *("cold: master", "worker"),
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
    redis_bytes = CHECK_BYTES.value + CALL_BYTES.value / each.batch
    yield f"{row.checks:,}"
    yield f"{row.sessions:,}"
    yield f"{row.deployments:,}"
    yield f"{_rounded(row.deployments * each.workers):,}"
    yield f"{row.deployments * each.masters:,}"
    yield f"{row.sessions * SESSION_BYTES.value / 1e9:,.1f} GB"
    yield _bits(row.checks * CALLER_BYTES.value)
    yield _bits(row.checks * (1 - each.hits) * redis_bytes)
    yield f"{each.hits:.0%}" if row.cached else "-"
    yield f"{each.batch:.1f}"
    yield f"{each.master_utilisation:.0%}"
    yield from (f"{share:.1%}" for share in each.fan_out)
    yield from (f"{cores:.1f}" for cores in each.cold)


def _rounded(number: int) -> int:
    """To two digits, as the search finds it."""
    digits = len(str(number)) - 2
    return round(number, -digits) if digits > 0 else number


def _bits(bytes_a_second: float) -> str:
    return f"{8 * bytes_a_second / 1e9:,.2f} Gbit/s"


def source_line(name: str, value: float) -> str:
    """The line of this module that gives the coefficient the value, to three digits."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    rounded = round(value, digits)
    number = f"{rounded:_.0f}" if rounded >= 1000 else f"{rounded:g}"
    _, unit, what, command = COEFFICIENTS[name]
    called = "COSTS" if command == COSTS else "MILLION"
    return f'{name} = Coefficient({number}, "{unit}", "{what}", {called})'


def coefficients() -> str:
    lines = ["| coefficient | value | from |", "|---|---|---|"]
    lines += [
        f"| {one.what} | {one.value:,.10g} {one.unit} | `{one.command}` |"
        for one in COEFFICIENTS.values()
    ]
    return "\n".join(lines)


def operations() -> str:
    """What each operation costs, and how many a second a core takes when it does nothing else."""
    calls = [(f"a check in a call of {batch}", batch) for batch in (2, 4, 16, Server.batch_max)]
    rows = [("a check from memory", NODE_HIT.value, 0.0)]
    rows += [
        (name, CHECK_COSTS.of_node(0, batch, cached=False), CHECK_COSTS.of_redis(0, batch))
        for name, batch in [("a check alone in its call", 1), *calls]
    ]
    rows += [
        ("a login", NODE_LOGIN.value, REDIS_LOGIN.value),
        ("a logout", NODE_LOGOUT.value, REDIS_LOGOUT.value),
    ]
    lines = ["| operation | node | a second | Redis | a second |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {_of_core(node_us)} | {_of_core(redis_us)} |"
        for name, node_us, redis_us in rows
    ]
    return "\n".join(lines)


def _of_core(us: float) -> str:
    return f"{us:.1f} us | {_rounded(int(UTILISATION * 1e6 / us)):,}" if us else "- | -"


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(coefficients())
    print(f"\n{operations()}")
    for cached in False, True:
        print(f"\n{'With' if cached else 'Without'} the near-cache:\n\n{table(cached=cached)}")
    return 0


if __name__ == "__main__":
    run(main)
