"""`make chaos`: every scenario, its bars and what was measured; exit code 1 when one is missed.

Leaves the table in var/chaos/report.md: what earlier runs said of those scenarios is replaced.
"""

import argparse
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scripts.chaos import (
    Bar,
    churn,
    clocks,
    cluster,
    departures,
    fast_check,
    inputs,
    million,
    order,
    outages,
    races,
    restart,
    sentinel,
    silence,
    slow,
    workers,
)

SCENARIOS: dict[str, Callable[[bool], Iterable[Bar]]] = {
    "sentinel": sentinel.play,
    "cluster": cluster.play,
    "restart": restart.play,
    "outages": outages.play,
    "order": order.play,
    "silence": silence.play,
    "workers": workers.play,
    "departures": departures.play,
    "races": races.play,
    "churn": churn.play,
    "million": million.play,
    "clocks": clocks.play,
    "inputs": inputs.play,
    "fast_check": fast_check.play,
    "slow": slow.play,
}
"""In the order of the table."""

REPORT = Path("var/chaos/report.md")
HEAD = "| scenario | promise | measured | |\n|---|---|---|---|\n"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="scenario")
    parser.add_argument("--short", action="store_true", help="seconds each, as in the test suite")
    options = parser.parse_args()
    chosen = options.scenarios or list(SCENARIOS)
    rows = {name: [row for row in _rows() if row.startswith(f"| {name} |")] for name in SCENARIOS}
    missed = 0
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(chosen, 1):
        begun = time.monotonic()
        print(f"{name} ({number} of {len(chosen)})", file=sys.stderr)
        rows[name] = []
        for bar in _bars(name, options.short):
            missed += not bar.met
            verdict = "met" if bar.met else "MISSED"
            print(f"  {verdict:6} {bar.promise}: {bar.measured}", file=sys.stderr)
            rows[name].append(f"| {name} | {bar.promise} | {bar.measured} | {verdict} |\n")
        print(f"  {time.monotonic() - begun:.0f} s", file=sys.stderr)
        REPORT.write_text(HEAD + "".join(itertools.chain(*rows.values())), "utf-8")
    print(HEAD, *itertools.chain(*(rows[name] for name in chosen)), sep="", end="")
    return 1 if missed else 0


def _rows() -> list[str]:
    return REPORT.read_text("utf-8").splitlines(keepends=True) if REPORT.exists() else []


def _bars(name: str, short: bool) -> Iterator[Bar]:
    try:
        yield from SCENARIOS[name](short)
    except Exception as error:  # the others are still played
        traceback.print_exc()
        yield Bar("can be played", f"{type(error).__name__}: {error}", False)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
