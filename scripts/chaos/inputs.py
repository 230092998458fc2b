"""Millions of bad requests, and whether each answer is one of the contract's: in process, on a
Redis that never changes, and over sockets, on a service and a Redis that are real.

tests/harness/fuzzer.py sends them. A failure names the seed; SESIONES_CHAOS_SEED plays it again.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import uvloop

from scripts.chaos import Bar, resident
from tests.harness.fuzzer import Findings, fuzz_in_process, fuzz_over_sockets
from tests.harness.in_process import SETTINGS
from tests.harness.progress import Progress
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

IN_PROCESS, SHORT_IN_PROCESS = 10_000_000, 4_000
OVER_SOCKETS, SHORT_OVER_SOCKETS = 100_000, 250
CHUNKS = 20
"""The parts of a run. The memory is looked at behind each part that a process has done."""
SLOWEST_MAX_SECONDS = 1.0
GROWTH_MAX = 1.05

Chunk = tuple[Findings, int, int]
"""What came of a part, the process that did it and its resident memory in kB."""


def play(short: bool) -> Iterator[Bar]:
    seed, chunks = chaos_seed(short), 1 if short else CHUNKS
    inputs = SHORT_IN_PROCESS if short else IN_PROCESS
    yield from _bars("in process", in_processes(_in_process, seed, inputs, chunks), short)
    inputs = SHORT_OVER_SOCKETS if short else OVER_SOCKETS
    with RedisServer() as redis, Service(SESIONES_REDIS_URL=redis.url, **SETTINGS) as service:
        found = (
            _over_sockets(service, f"{seed}:{number}", inputs // chunks) for number in range(chunks)
        )
        yield from _bars("over sockets", total("over sockets", found, chunks), short)


def chaos_seed(short: bool) -> str:
    return "short" if short else os.environ.get("SESIONES_CHAOS_SEED", str(time.time_ns()))


def statuses(findings: Findings) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in sorted(findings.statuses.items()))


def in_processes(
    fuzz: Callable[[str, int], Chunk], seed: str, inputs: int, chunks: int
) -> tuple[Findings, float]:
    """What came of the inputs, shared among as many processes as there are processors."""
    seeds = [f"{seed}:{number}" for number in range(chunks)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return total("in process", pool.map(fuzz, seeds, [inputs // chunks] * chunks), chunks)


def total(label: str, found: Iterable[Chunk], chunks: int) -> tuple[Findings, float]:
    """All findings, and by how much the memory of a process grew at most."""
    findings, progress = Findings(), Progress(label, chunks)
    first: dict[int, int] = {}
    growth = 1.0
    for one, pid, memory in found:
        findings.add(one)
        growth = max(growth, memory / first.setdefault(pid, memory))
        progress.step()
    progress.end()
    return findings, growth


def _in_process(seed: str, inputs: int) -> Chunk:
    findings = uvloop.run(fuzz_in_process(seed, inputs))
    return findings, os.getpid(), resident(os.getpid())


def _over_sockets(service: Service, seed: str, inputs: int) -> Chunk:
    findings = fuzz_over_sockets(service, seed, inputs)
    return findings, service.process.pid, resident(service.process.pid)


def _bars(where: str, found: tuple[Findings, float], short: bool) -> Iterator[Bar]:
    findings, growth = found
    yield Bar(
        f"no answer to {findings.inputs:,} bad inputs {where} is outside the contract, "
        "none is a 5xx",
        findings.violations[0] if findings.violations else statuses(findings),
        not findings.violations,
    )
    if not short:
        yield Bar(
            f"{where}, none is waited for longer than {SLOWEST_MAX_SECONDS:.0f} s",
            f"{findings.slowest:.2f} s at most",
            findings.slowest <= SLOWEST_MAX_SECONDS,
        )
        yield Bar(
            f"{where}, memory grows by less than 5 %",
            f"{100 * (growth - 1):+.1f} %",
            growth < GROWTH_MAX,
        )
