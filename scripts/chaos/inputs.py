"""Millions of bad requests, and whether each answer is one of the contract's: in process, on a
Redis that never changes, and over sockets, on a service and a Redis that are real.

tests/harness/fuzzer.py sends them. A failure names the seed; SESIONES_CHAOS_SEED plays it again.
"""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import uvloop

from scripts.chaos import Bar, resident
from tests.harness.fuzzer import HANG_SECONDS, Findings, fuzz_in_process, fuzz_over_sockets
from tests.harness.in_process import SETTINGS
from tests.harness.progress import Progress
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

IN_PROCESS, SHORT_IN_PROCESS = 10_000_000, 4_000
OVER_SOCKETS, SHORT_OVER_SOCKETS = 100_000, 250
CHUNK = 50_000
"""Inputs of one task of a process; the memory is looked at behind each of them."""
GROWTH_MAX = 1.05
WARM = 0.1
"""The share of inputs over sockets after which the memory is looked at first."""


def play(short: bool) -> Iterator[Bar]:
    seed = chaos_seed(short)
    if short:
        yield _judged("in process", uvloop.run(fuzz_in_process(seed, SHORT_IN_PROCESS)))
    else:
        yield from _bars("in process", *_in_processes(seed))
    with RedisServer() as redis, Service(SESIONES_REDIS_URL=redis.url, **SETTINGS) as service:
        if short:
            found = asyncio.run(fuzz_over_sockets(service, seed, SHORT_OVER_SOCKETS))
            yield _judged("over sockets", found)
        else:
            yield from _bars("over sockets", *_over_sockets(service, seed))


def chaos_seed(short: bool) -> str:
    return "short" if short else os.environ.get("SESIONES_CHAOS_SEED", str(time.time_ns()))


def statuses(findings: Findings) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in sorted(findings.statuses.items()))


def _judged(where: str, findings: Findings) -> Bar:
    return Bar(
        f"no answer to {findings.inputs:,} bad inputs {where} is outside the contract, "
        "none is a 5xx",
        findings.violations[0] if findings.violations else statuses(findings),
        not findings.violations,
    )


def _bars(where: str, findings: Findings, growth: float) -> Iterator[Bar]:
    yield _judged(where, findings)
    yield Bar(
        f"{where}, none is waited for longer than {HANG_SECONDS:.0f} s",
        f"{findings.slowest:.2f} s at most",
        findings.slowest <= HANG_SECONDS,
    )
    yield Bar(
        f"{where}, memory grows by less than 5 %",
        f"{100 * (growth - 1):+.1f} %",
        growth < GROWTH_MAX,
    )


def _in_processes(seed: str) -> tuple[Findings, float]:
    """The findings of as many processes as there are processors, and how their memory grew."""
    total, progress = Findings(), Progress("in process", IN_PROCESS)
    warm: dict[int, int] = {}
    growth = 1.0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        seeds = [f"{seed}:{number}" for number in range(IN_PROCESS // CHUNK)]
        for findings, pid, memory in pool.map(_chunk, seeds):
            total.add(findings)
            growth = max(growth, memory / warm.setdefault(pid, memory))
            for _ in range(CHUNK):
                progress.step()
    progress.end()
    return total, growth


def _chunk(seed: str) -> tuple[Findings, int, int]:
    """The findings, the process and its resident memory afterwards."""
    findings = uvloop.run(fuzz_in_process(seed, CHUNK))
    return findings, os.getpid(), resident(os.getpid())


def _over_sockets(service: Service, seed: str) -> tuple[Findings, float]:
    assert service.process is not None
    progress = Progress("over sockets", OVER_SOCKETS)
    warm = int(OVER_SOCKETS * WARM)
    total = asyncio.run(fuzz_over_sockets(service, f"{seed}:warm", warm, progress))
    before = resident(service.process.pid)
    total.add(asyncio.run(fuzz_over_sockets(service, seed, OVER_SOCKETS - warm, progress)))
    progress.end()
    return total, resident(service.process.pid) / before
