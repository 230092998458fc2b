"""The CPU time of checks: of the parts that a check consists of, and of a load that the model of
capacity.py predicts from them. For costs.py.

A node does four things for checks: it handles a request, makes an entry of the near-cache, calls
Redis with a batch of checks, and wakes up when it had nothing to do. Under a moderate load, nearly
every check is a call and wakes the node twice. At the limit a node never sleeps, and the batches
are large. So the two together tell what each part costs.
"""

import itertools
import os
import re
import resource
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from scripts import bench, wrk
from scripts.bench_servers import ours
from scripts.capacity import CheckCosts, batch_size, busy, hit_ratio
from scripts.command_line import show
from scripts.redis_costs import check_and_call
from tests.harness.generator import Generators

SESSIONS = 40_000
"""More than a node is asked about in a second by far, so that entries that live for a second answer
about a half of the checks."""
HOT_SESSIONS = 2000
"""For checks from memory, and for the loads that are predicted."""
CONNECTIONS = 64
MODERATE_RATE = 4000
"""Checks a second, of all nodes together: about half of the core, when Redis answers them."""
RATES = 2000, 8000
"""Checks a second, of two nodes together on one core, which are predicted."""
ROUNDS = 5
SECONDS = 1
TRIES = 3
FOREIGN_SHARE_MAX = 0.1
"""Of one core, that other programs may use during a measurement."""
MASTERS = 3

RANDOM_REQUESTS = """
local requests, number = {}, 0
function init(arguments)
  for line in io.lines("@FILE@") do
    requests[#requests + 1] = string.gsub(line, "|", "\\r\\n")
  end
  math.randomseed(os.time())
  number = math.min(#requests, tonumber(arguments[1]))
end
function request()
  return requests[math.random(number)]
end
"""
"""Independent checks of the first sessions, as those of many users are."""
COUNTERS = 'cache_lookups_total{outcome="hit"}', "check_batch_size_sum", "check_batch_size_count"
COUNTED = re.compile(rf"^sesiones_({'|'.join(map(re.escape, COUNTERS))}) (\S+)$", re.M)


class Parts(NamedTuple):
    """What a check consists of, and what waking up costs, in microseconds of CPU time."""

    checks: CheckCosts
    node_wake: float
    redis_wake: float


class Measured(NamedTuple):
    """A load: requests a second; for each request the hits of the near-cache, the calls of Redis,
    and the CPU time of the nodes and of Redis in microseconds."""

    rate: float
    hits: float
    calls: float
    node_us: float
    redis_us: float


class Loads(NamedTuple):
    """Of nodes that share a core: checks that Redis answers, checks from memory, and both, from
    nodes whose entries live for a second. At a moderate rate, and at the limit."""

    nodes: int

    moderate: Measured
    limit: Measured
    hits_moderate: Measured
    hits_limit: Measured
    mixed_limit: Measured


def parts_of(loads: Loads, redis_check: float, redis_call: float, masters: int) -> Parts:
    nodes, moderate, limit, few_hits, hits, mixed = loads
    asleep = _asleep(few_hits.rate, few_hits.node_us, nodes)
    node_wake = (few_hits.node_us - hits.node_us) / asleep
    # The replies of Redis wake the node, too.
    asleep = _asleep(moderate.rate, moderate.node_us, nodes)
    work_us = moderate.node_us - asleep * (1 + moderate.calls) * node_wake
    more_calls = moderate.calls - limit.calls
    node_call = (work_us - limit.node_us) / more_calls
    node_check = limit.node_us - limit.calls * node_call
    misses_us = mixed.node_us - mixed.hits * hits.node_us - mixed.calls * node_call
    asleep = _asleep(moderate.rate, moderate.redis_us, masters)
    waking_us = moderate.redis_us - redis_check - moderate.calls * redis_call
    costs = CheckCosts(
        hits.node_us,
        node_check,
        misses_us / (1 - mixed.hits) - node_check,
        node_call,
        redis_check,
        redis_call,
    )
    return Parts(costs, node_wake, waking_us / (moderate.calls * asleep))


def _asleep(rate: float, us: float, processes: int) -> float:
    """The share of time in which each of the processes sleeps that share a core and such a load:
    what capacity.busy() takes it for."""
    share = rate * us / 1e6 / processes
    return 1 - share / (1 - (processes - 1) * share)


def busy_us(rate: float, work_us: float, waking_us: float, processes: int) -> float:
    """The CPU time for each request of processes that share a core and a load: ``work_us``, and
    ``waking_us`` if every event wakes a process."""
    each = rate / processes / 1e6
    share = 0.0
    for _ in range(50):  # until what the processes leave each other is what they get
        share = busy(each * work_us, each * waking_us, (processes - 1) * share)
    return share / each


def coefficients() -> Iterator[tuple[str, float, str]]:
    """Of a node on one Redis: those of capacity.py by their names, of the medians of the rounds."""
    with (
        _nodes("redis", 1) as (strict, cached, short),
        _generators(strict) as of_strict,
        _generators(cached) as of_cached,
    ):
        rounds = [_loads(strict, cached, short, of_strict, of_cached) for _ in _rounds()]
    parts = parts_of(_median(rounds), *check_and_call(), masters=1)
    costs = parts.checks._asdict() | {"node_wake": parts.node_wake, "redis_wake": parts.redis_wake}
    for name, figure in costs.items():
        yield name.upper(), figure, "us"


def _median(rounds: list[Loads]) -> Loads:
    number, *_ = rounds[0]
    loads = list(zip(*rounds, strict=True))[1:]
    return Loads(
        number, *(Measured(*map(statistics.median, zip(*each, strict=True))) for each in loads)
    )


def _rounds() -> Iterator[None]:
    for number in range(ROUNDS):
        show(f"checks: round {number + 1} of {ROUNDS}")
        yield
    show("")


@contextmanager
def _nodes(scheme: str, number: int) -> Iterator[list[list[bench.Target]]]:
    """So many nodes each without a near-cache, with one, and with entries that live for a second.
    All of them have been used a little, and every hot session has its entry."""
    kinds = (), ("--cache-seconds", "60"), ("--cache-seconds", "1")
    servers = [
        ours(f"kind-{kind}-{one}", "", "--touch-seconds", "60", *flags, scheme=scheme)
        for kind, flags in enumerate(kinds)
        for one in range(number)
    ]
    with bench.targets(servers, SESSIONS, RANDOM_REQUESTS) as started:
        alike = [started[first : first + number] for first in range(0, len(started), number)]
        for nodes in alike:
            _at_limit(nodes, HOT_SESSIONS)
        yield alike


def _loads(
    strict: list[bench.Target],
    cached: list[bench.Target],
    short: list[bench.Target],
    of_strict: list[Generators],
    of_cached: list[Generators],
) -> Loads:
    hits_limit = _at_limit(cached, HOT_SESSIONS)  # first, so that every session has its entry
    hits_moderate = _at_rate(cached, of_cached, MODERATE_RATE)
    return Loads(
        len(strict),
        _at_rate(strict, of_strict, MODERATE_RATE),
        _at_limit(strict, SESSIONS),
        hits_moderate,
        hits_limit,
        _at_limit(short, SESSIONS),
    )


def _at_limit(nodes: list[bench.Target], sessions: int) -> Measured:
    """As many checks as come with so many connections to each node."""

    def load_of(node: bench.Target) -> int:
        result = wrk.run(
            f"http://127.0.0.1:{node.port}",
            connections=CONNECTIONS,
            seconds=SECONDS,
            script=node.load,
            arguments=(str(sessions),),
            core=bench.LOAD_CORE,
        )
        if result.failed:
            raise SystemExit(f"{node.server.name}: {result.failed} requests failed")
        return result.requests

    def load() -> int:
        with ThreadPoolExecutor() as threads:
            return sum(threads.map(load_of, nodes))

    return _measure(nodes, load)


def _measure(nodes: list[bench.Target], load: Callable[[], int]) -> Measured:
    """Again, when other programs have used the processors meanwhile: a process that has to give way
    costs more. The try with the least of that counts."""
    tries = []
    for _ in range(TRIES):
        foreign, begun = _foreign_seconds(), time.monotonic()
        measured = _measure_once(nodes, load)
        share = (_foreign_seconds() - foreign) / (time.monotonic() - begun)
        tries.append((share, measured))
        if share < FOREIGN_SHARE_MAX:
            break
    return min(tries)[1]


def _foreign_seconds() -> float:
    """Processor time that others have used so far: all of the machine's but that of this process,
    those that it has started, and those that these have."""
    names, *_ = Path("/proc/stat").read_text().splitlines()
    user, nice, system, _, _, irq, softirq, steal = map(int, names.split()[1:9])
    used = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used - bench.cpu_us(os.getpid()) / 1e6 - ended.ru_utime - ended.ru_stime


def _measure_once(nodes: list[bench.Target], load: Callable[[], int]) -> Measured:
    before = _counted(nodes)
    spent_before = _spent(nodes)
    requests = load()
    spent = _spent(nodes)
    node_us, redis_us = (now - then for now, then in zip(spent, spent_before, strict=True))
    hits, misses, calls = (now - then for now, then in zip(_counted(nodes), before, strict=True))
    lookups = hits + misses
    return Measured(
        requests / SECONDS, hits / lookups, calls / lookups, node_us / requests, redis_us / requests
    )


def _spent(nodes: list[bench.Target]) -> tuple[float, float]:
    """CPU time of the nodes and of Redis so far."""
    redis_us = sum(map(bench.exact_cpu_us, nodes[0].redis_pids))
    return sum(bench.exact_cpu_us(node.pid) for node in nodes), redis_us


def _counted(nodes: list[bench.Target]) -> list[int]:
    """Hits of the near-cache, checks that Redis was asked about, and calls of Redis with them, so
    far."""
    total = Counter[str]()
    for node in nodes:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.port}/metrics", timeout=10) as page:
            for name, value in COUNTED.findall(page.read().decode()):
                total[name] += int(float(value))
    return [total[name] for name in COUNTERS]


class Row(NamedTuple):
    """A figure of a load, as predicted and as measured."""

    load: str
    figure: str
    predicted: float
    measured: float


def predict() -> Iterator[tuple[str, str, float, float, float]]:
    """Load, figure, predicted, measured and their ratio: medians of several rounds."""
    with (
        _nodes("redis+cluster", 2) as (strict, cached, short),
        _generators(strict) as of_strict,
        _generators(cached) as of_cached,
        _generators(short) as of_short,
    ):
        rounds = []
        for _ in _rounds():
            loads = _loads(strict, cached, short, of_strict, of_cached)
            parts = parts_of(loads, *check_and_call(), MASTERS)
            compared = (_compare(parts, rate, strict, of_strict, short, of_short) for rate in RATES)
            rounds.append(list(itertools.chain.from_iterable(compared)))
    for rows in zip(*rounds, strict=True):
        predicted = statistics.median(row.predicted for row in rows)
        measured = statistics.median(row.measured for row in rows)
        ratio = statistics.median(row.predicted / row.measured for row in rows)
        yield rows[0].load, rows[0].figure, predicted, measured, ratio


@contextmanager
def _generators(nodes: list[bench.Target]) -> Iterator[list[Generators]]:
    """For each node a process, on the core for loads, that asks it about hot sessions."""
    cores = os.sched_getaffinity(0)
    with ExitStack() as stack:
        os.sched_setaffinity(0, {bench.LOAD_CORE})
        try:
            started = [
                Generators(
                    f"http://127.0.0.1:{node.port}/sesiones/self",
                    node.sessions[:HOT_SESSIONS],
                    CONNECTIONS,
                    processes=1,
                )
                for node in nodes
            ]
        finally:
            os.sched_setaffinity(0, cores)
        for each in started:
            stack.enter_context(each)
        yield started


def _at_rate(nodes: list[bench.Target], generators: list[Generators], rate: float) -> Measured:
    """Checks that come at a rate, whether or not earlier ones were answered."""

    def load(seconds: float = SECONDS) -> int:
        with ThreadPoolExecutor() as threads:
            steps = list(threads.map(lambda one: one.run(rate / len(nodes), seconds), generators))
        if failures := sum((step.failures for step in steps), Counter[str]()):
            raise SystemExit(f"{nodes[0].server.name}: {dict(failures)}")
        return sum(step.answered for step in steps)

    load(1.5)  # entries of a second are as old as they will be
    return _measure(nodes, load)


def _compare(
    parts: Parts,
    rate: float,
    strict: list[bench.Target],
    of_strict: list[Generators],
    short: list[bench.Target],
    of_short: list[Generators],
) -> Iterator[Row]:
    """Two nodes without a near-cache, and two whose entries live for a second. From the batches of
    the former follows the round trip of a call, which this machine sets and nothing else."""
    name = f"{rate:,} checks/s"
    without = _at_rate(strict, of_strict, rate)
    pair_rate = without.rate / len(strict) / MASTERS
    round_trip = round_trip_of(pair_rate, 1 / without.calls)
    yield from _cpu(name, parts, without, 0, batch_size(pair_rate, round_trip), cached=False)
    name += ", near-cache"
    other = _at_rate(short, of_short, rate)
    node_rate = other.rate / len(short)
    hits = hit_ratio(node_rate / HOT_SESSIONS, 1)
    batch = batch_size((1 - hits) * node_rate / MASTERS, round_trip)
    yield Row(name, "hit ratio", hits, other.hits)
    yield Row(name, "calls of Redis a check", (1 - hits) / batch, other.calls)
    yield from _cpu(name, parts, other, hits, batch, cached=True)


def _cpu(
    name: str, parts: Parts, measured: Measured, hits: float, batch: float, *, cached: bool
) -> Iterator[Row]:
    """Of two nodes that share a core, and masters that share another one."""
    calls = (1 - hits) / batch
    node_us = parts.checks.of_node(hits, batch, cached=cached)
    node_us = busy_us(measured.rate, node_us, (1 + calls) * parts.node_wake, 2)
    redis_us = parts.checks.of_redis(hits, batch)
    redis_us = busy_us(measured.rate, redis_us, calls * parts.redis_wake, MASTERS)
    yield Row(name, "nodes: CPU us a check", node_us, measured.node_us)
    yield Row(name, "Redis: CPU us a check", redis_us, measured.redis_us)


def round_trip_of(rate: float, batch: float) -> float:
    """The seconds for which batch_size() gives this size."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if batch_size(rate, middle) < batch else (low, middle)
    return low
