"""Latency against offered rate, up to saturation: an open loop, each reply checked.

    python -m scripts.throughput                        up to saturation, which it finds by doubling
    python -m scripts.throughput --rates 5000 10000     these; for runs to compare
    python -m scripts.throughput --compare a.json b.json

The tokens are those of `python -m scripts.seed`. Prints a table, and leaves report.json,
report.html and its first chart, latency.svg, in --output; of two runs, compare.html. Exit code 1
when a reply was wrong.
"""

import argparse
import json
import os
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import sesiones
from scripts import report
from scripts.command_line import positive, run, show
from scripts.machine import machine
from scripts.report import Report
from scripts.seed import FILE, SeedError, Session, read_tokens
from tests.harness.generator import Generators, Step

URL = "http://127.0.0.1:8000/sesiones/self"
STEPS_MAX = 20
OVERLOAD = {"no reply", "no connection", "status 503"}
"""Failures that the search for the limit provokes."""
PROCESSES = max(1, (os.cpu_count() or 1) - 2)
"""Of the generator: the service and Redis need a core each."""
CURVE = [100 * (1 - 10 ** -(nines / 10)) for nines in range(51)]
"""Percentiles from 0 to 99.999, ten a nine."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Of sorted values, the smallest that so many percent do not exceed (nearest rank)."""
    if not values:
        return 0.0
    rank = -(-len(values) * percent // 100)
    return values[max(int(rank), 1) - 1]


def summary(offered: float, seconds: float, step: Step) -> Report:
    """A step's figures, as the report holds them."""

    def milliseconds(values: "array[float]") -> list[float]:
        return sorted(round(1000 * value, 4) for value in values)

    def curve(values: list[float]) -> list[list[float]]:
        # No further than the values reach: the last nine of a thousand is 99.9.
        shown = [p for p in CURVE if len(values) * (1 - p / 100) >= 1 - 1e-9]
        return [[p, percentile(values, p)] for p in shown]

    latencies, service_times, lateness = map(
        milliseconds, (step.latencies, step.service_times, step.lateness)
    )
    named = {name: percentile(latencies, float(name)) for name in (*report.PERCENTILES, "100")}
    served = {name: percentile(service_times, float(name)) for name in named}
    late = percentile(lateness, 99)
    return {
        "offered": offered,
        "seconds": seconds,
        "arrivals": step.arrivals,
        "answered": step.answered / seconds,
        "unsent": step.unsent,
        "failures": dict(step.failures),
        "latency_ms": named,
        "service_time_ms": served,
        "curve": curve(latencies),
        "service_curve": curve(service_times),
        "generator": {
            "busy": step.busy,
            "lateness_ms": {"50": percentile(lateness, 50), "99": late},
        },
        # Not all was sent in time and answered, or the median latency was mostly waiting for that.
        "saturated": step.answered < 0.97 * step.arrivals or named["50"] > 2 * served["50"],
        # It had no time to spare, or most of what it measured is its own delay.
        "generator_limited": step.busy > 0.9 or late > max(1, named["99"] / 2),
    }


def find_rates(
    generators: Generators, steps: list[Report], failures: Counter[str]
) -> Iterator[float]:
    """Tenths of the highest rate that is answered, and on until a step is saturated.

    Adds to ``failures`` those of the search. Raises ValueError when nothing is answered.
    """
    offered, answered = 1000.0, 0.0
    while True:
        show(f"looking for the limit: {offered:,.0f}/s")
        # Twice before it is believed: a machine may be busy with something else.
        tries = [summary(offered, 1, generators.run(offered, 1))]
        if tries[0]["saturated"]:
            tries.append(summary(offered, 1, generators.run(offered, 1)))
        answered = max(answered, *(tried["answered"] for tried in tries))
        for tried in tries:
            failures.update(tried["failures"])
        if tries[-1]["saturated"]:
            break
        offered *= 2
    if not answered:
        raise ValueError(f"no right answer: {report.listed(failures) or 'no reply'}")
    for why in OVERLOAD:
        del failures[why]
    for tenth in range(1, STEPS_MAX + 1):
        if tenth > 10 and steps[-1]["saturated"]:
            break
        yield float(f"{tenth * answered / 10:.2g}")


def measure(
    url: str,
    sessions: Sequence[Session],
    *,
    rates: Sequence[float],
    seconds: float,
    connections: int,
    processes: int,
) -> Report:
    """The report of a run; without rates, those that find_rates() finds.

    Raises OSError, ValueError.
    """
    steps: list[Report] = []
    search_failures: Counter[str] = Counter()
    with Generators(url, sessions, connections, processes) as generators:
        for rate in rates or find_rates(generators, steps, search_failures):
            show(f"{rate:,.0f}/s")
            steps.append(summary(rate, seconds, generators.run(rate, seconds)))
    show("")
    if not any(step["answered"] for step in steps):
        failed = report.failures({"steps": steps})
        raise ValueError(f"no right answer: {report.listed(failed) or 'no reply'}")
    return {
        "version": sesiones.__version__,
        "settings": {
            "url": url,
            "sessions": len(sessions),
            "seconds a step": seconds,
            "connections": connections,
            "generator processes": processes,
        },
        "machine": machine(),
        "search_failures": dict(search_failures),
        "steps": steps,
    }


def write(measured: Report, folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(measured, indent=1))
    (folder / "report.html").write_text(report.page([measured]))
    (folder / "latency.svg").write_bytes(report.latency_chart([measured]))


def read(path: Path) -> Report:
    """A report of an earlier run. Raises ValueError."""
    try:
        measured: Report = json.loads(path.read_text())
        report.page([measured])  # has all that a comparison needs
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        raise ValueError(f"{path} is not a report of this script") from None
    return measured


def http_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in ("http", "https") and parts.hostname and parts.path and parts.port != 0
        )
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError("must be http://host:port/path, or https://")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", type=http_url, default=URL, help=f"what to ask (default: {URL})")
    parser.add_argument("--tokens", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--rates", type=positive, nargs="+", default=[], help="requests a second")
    parser.add_argument("--seconds", type=positive, default=10, help="of each step")
    parser.add_argument("--connections", type=positive, default=64)
    parser.add_argument(
        "--processes",
        type=positive,
        default=PROCESSES,
        help="that make the load (default: the cores but two)",
    )
    parser.add_argument("--output", type=Path, default=Path("var/load"), metavar="FOLDER")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"))
    options = parser.parse_args()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        if options.compare:
            reports = [read(path) for path in options.compare]
            (options.output / "compare.html").write_text(report.page(reports))
        else:
            sessions = read_tokens(options.tokens)
            if not sessions:
                raise ValueError("there are no tokens in the file")
            try:
                measured = measure(
                    options.url,
                    sessions,
                    rates=options.rates,
                    seconds=options.seconds,
                    connections=options.connections,
                    processes=options.processes,
                )
            except (OSError, ValueError) as error:
                raise ValueError(f"{options.url}: {error}") from error
            write(measured, options.output)
            reports = [measured]
    except (OSError, ValueError, SeedError) as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 2
    print(report.text_table(*report.rows(reports)))
    if options.compare:
        print(f"\n{options.output / 'compare.html'}")
        return 0
    print("", *report.conclusions(measured), "", options.output / "report.html", sep="\n")
    return 1 if report.failures(measured) else 0


if __name__ == "__main__":
    run(main)
