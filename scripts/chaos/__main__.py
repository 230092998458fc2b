"""`make chaos`: every scenario, its bars and what was measured; exit code 1 when one is missed.

Leaves the table in var/chaos/report.md.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scripts.chaos import Bar, cluster, races, restart, sentinel

SCENARIOS: dict[str, Callable[[bool], Iterable[Bar]]] = {
    "sentinel": sentinel.play,
    "cluster": cluster.play,
    "restart": restart.play,
    "races": races.play,
}
"""In the order of the table."""

REPORT = Path("var/chaos/report.md")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="scenario")
    parser.add_argument("--short", action="store_true", help="seconds each, as in the test suite")
    options = parser.parse_args()
    chosen = options.scenarios or list(SCENARIOS)
    lines = ["| scenario | promise | measured | |", "|---|---|---|---|"]
    missed = 0
    for number, name in enumerate(chosen, 1):
        print(f"{name} ({number} of {len(chosen)})", file=sys.stderr)
        for bar in _timed(SCENARIOS[name](options.short)):
            missed += not bar.met
            verdict = "met" if bar.met else "MISSED"
            print(f"  {verdict:6} {bar.promise}: {bar.measured}", file=sys.stderr)
            lines.append(f"| {name} | {bar.promise} | {bar.measured} | {verdict} |")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")
    return 1 if missed else 0


def _timed(bars: Iterable[Bar]) -> Iterator[Bar]:
    begun = time.monotonic()
    yield from bars
    print(f"  {time.monotonic() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
