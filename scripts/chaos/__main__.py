"""`make chaos`: plays the scenarios, and compares what each measures with its bars.

The exit code is 1 when a bar is missed. The table is also written to a file, in which the rows of
the scenarios that were played replace those of earlier runs.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from scripts.chaos import Bar
from scripts.command_line import run
from scripts.machine import commit
from tests.harness.redis_binary import find_binaries

NAMES = (
    "sentinel",
    "cluster",
    "restart",
    "outages",
    "order",
    "silence",
    "cache",
    "workers",
    "departures",
    "churn",
    "million",
    "inputs",
    "fast_check",
    "slow",
)
"""In the order of the table. Each is a module of this package."""
SCENARIOS: dict[str, Callable[[bool], Iterable[Bar]]] = {
    name: import_module(f"scripts.chaos.{name}").play for name in NAMES
}

REPORT = Path("var/chaos/report.md")
HEAD = """\
# The last run of each scenario

Written by `python -m scripts.chaos --write docs/reliability-last-run.md`, which replaces the rows
of the scenarios that it plays. What each scenario does, and what is promised, is in
[reliability.md](reliability.md).

| scenario | run | promise | measured | |
|---|---|---|---|---|
"""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[[], *NAMES], metavar="scenario")
    parser.add_argument("--short", action="store_true", help="seconds each, as in the test suite")
    parser.add_argument(
        "--write", type=Path, default=REPORT, metavar="FILE", help=f"default: {REPORT}"
    )
    options = parser.parse_args()
    report: Path = options.write
    old = report.read_text("utf-8").splitlines() if report.exists() else []
    rows = {name: [line for line in old if line.startswith(f"| {name} |")] for name in NAMES}
    report.parent.mkdir(parents=True, exist_ok=True)
    missed = 0
    chosen = options.scenarios or NAMES
    for number, name in enumerate(chosen, 1):
        begun = time.monotonic()
        print(f"{name} ({number} of {len(chosen)})", file=sys.stderr)
        rows[name] = []
        for bar in _bars(name, options.short):
            missed += not bar.met
            verdict = "met" if bar.met else "MISSED"
            print(f"  {verdict:6} {bar.promise}: {bar.measured}", file=sys.stderr)
            run = _run(options.short)
            rows[name].append(f"| {name} | {run} | {bar.promise} | {bar.measured} | {verdict} |")
        print(f"  {time.monotonic() - begun:.0f} s", file=sys.stderr)
        lines = [line for name in NAMES for line in rows[name]]
        report.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")
    print(HEAD.splitlines()[-2], HEAD.splitlines()[-1], sep="\n")
    print(*(line for name in chosen for line in rows[name]), sep="\n")
    return 1 if missed else 0


def _run(short: bool) -> str:
    (binary, *_), _rejected = find_binaries()
    place = f"{os.cpu_count()} cores, {binary.kind} {binary.version}"
    run = ", ".join(filter(None, (f"{datetime.now(UTC):%Y-%m-%d}", commit(), place)))
    return f"{run}, short form" if short else run


def _bars(name: str, short: bool) -> Iterator[Bar]:
    try:
        yield from SCENARIOS[name](short)
    except Exception as error:  # the other scenarios are still played
        traceback.print_exc()
        yield Bar("can be played", f"{type(error).__name__}: {error}", False)


if __name__ == "__main__":
    run(main)
