"""What throughput.py measured: as a table, as charts, as one HTML file; one run or two compared.

The report is a dict, as its JSON holds it; everything shown is read from it.
"""

import base64
import html
import io
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

PERCENTILES = ("50", "90", "99", "99.9")
INK = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#000000")  # Okabe and Ito's: told apart by all
MARKERS = ("o", "s", "^", "D", "x")
LINES = ("-", "--")

Report = dict[str, Any]
Row = list[str]


def number(value: float) -> str:
    """Three significant digits, and no fewer than the integer has."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def note(step: Report) -> str:
    notes = []
    if step["saturated"]:
        notes.append("saturated")
    if step["generator_limited"]:
        notes.append("generator")
    return ", ".join(notes)


HEADINGS = [
    "offered/s",
    "answered/s",
    *(f"p{percentile} ms" for percentile in PERCENTILES),
    "max ms",
    "unsent",
    "failures",
    "late p99 ms",
    "busy %",
    "limit",
]


def row(step: Report) -> Row:
    latency = step["latency_ms"]
    return [
        number(step["offered"]),
        number(step["answered"]),
        *(number(latency[percentile]) for percentile in (*PERCENTILES, "100")),
        number(step["unsent"]),
        number(sum(step["failures"].values())),
        number(step["generator"]["lateness_ms"]["99"]),
        number(100 * step["generator"]["busy"]),
        note(step),
    ]


def ratio(first: Report, second: Report) -> Row:
    """The second step's figures to the first's."""
    one, two = first["latency_ms"], second["latency_ms"]
    pairs = [(one[p], two[p]) for p in (*PERCENTILES, "100")]
    return [
        "",
        f"x{second['answered'] / first['answered']:.2f}" if first["answered"] else "",
        *(f"x{b / a:.2f}" if a else "" for a, b in pairs),
        *[""] * 5,
    ]


def rows(reports: list[Report]) -> tuple[list[str], list[Row]]:
    """Headings and rows. Of two reports, side by side: A, B, and B to A at each rate of both."""
    if len(reports) == 1:
        return HEADINGS, [row(step) for step in reports[0]["steps"]]
    runs = [{step["offered"]: step for step in report["steps"]} for report in reports]
    table = []
    for offered in sorted(runs[0].keys() | runs[1].keys()):
        steps = {name: run[offered] for name, run in zip("AB", runs, strict=True) if offered in run}
        table += [[name, *row(step)] for name, step in steps.items()]
        if len(steps) == 2:
            table.append(["B/A", *ratio(steps["A"], steps["B"])])
    return ["run", *HEADINGS], table


def text_table(headings: list[str], table: list[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *table, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (headings, *table)
    )


def kept_up(report: Report) -> list[Report]:
    """The steps up to the first that was too much."""
    by_rate = sorted(report["steps"], key=lambda step: step["offered"])
    return list(itertools.takewhile(lambda step: not step["saturated"], by_rate))


def failures(report: Report) -> dict[str, int]:
    """How many of each, of the steps and of the search for the limit."""
    total: Counter[str] = Counter(report.get("search_failures", {}))
    for step in report["steps"]:
        total.update(step["failures"])
    return dict(total)


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{why}: {count:,}" for why, count in sorted(counts.items()))


def conclusions(report: Report) -> list[str]:
    """What the run says, and what it does not, in sentences."""
    said = []
    steps = report["steps"]
    if kept := kept_up(report):
        best = kept[-1]
        said.append(
            f"The highest rate up to which it kept up: {number(best['offered'])} requests "
            f"a second, with {number(best['latency_ms']['99'])} ms at the 99th percentile."
        )
    if limited := [step for step in steps if step["generator_limited"]]:
        rates = ", ".join(number(step["offered"]) for step in limited)
        said.append(
            f"At {rates} a second the load generator, or its machine, was the limit: those "
            "latencies are mostly its own, and the service's are no longer than they."
        )
    if any(step["saturated"] for step in steps):
        said.append(
            "Where a step is saturated its latencies grow for as long as it lasts: they tell that "
            "the rate is too high, not how long a request takes."
        )
    if failed := failures(report):
        said.append(f"Failures: {listed(failed)}.")
    else:
        said.append("Every request that was sent got a 200 for the user of its token.")
    return said


# Charts.


def latency_chart(reports: list[Report]) -> bytes:
    """Percentiles of latency against the offered rate."""
    figure, panel = _figure()
    percentiles = (*PERCENTILES, "100") if len(reports) == 1 else ("50", "99")
    for report, line, name in zip(reports, LINES, "AB", strict=False):
        steps = report["steps"]
        for percentile, ink, marker in zip(percentiles, INK, MARKERS, strict=False):
            label = "max" if percentile == "100" else f"p{percentile}"
            panel.plot(
                [step["offered"] for step in steps],
                [step["latency_ms"][percentile] for step in steps],
                color=ink,
                marker=marker,
                linestyle=line,
                label=label if len(reports) == 1 else f"{name}: {label}",
            )
    _mark_limits(panel, reports)
    panel.set_yscale("log")
    panel.set_xlabel("offered rate, requests/s")
    panel.set_ylabel("latency from arrival, ms (log)")
    return _svg(figure, panel)


def rate_chart(reports: list[Report]) -> bytes:
    """Right answers against the offered rate."""
    figure, panel = _figure()
    top = max(step["offered"] for report in reports for step in report["steps"])
    panel.plot([0, top], [0, top], color="#999999", linewidth=1, label="all that is offered")
    for report, line, name, ink in zip(reports, LINES, "AB", INK, strict=False):
        panel.plot(
            [step["offered"] for step in report["steps"]],
            [step["answered"] for step in report["steps"]],
            color=ink,
            marker="o",
            linestyle=line,
            label="right answers" if len(reports) == 1 else f"{name}: right answers",
        )
    _mark_limits(panel, reports)
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.set_xlabel("offered rate, requests/s")
    panel.set_ylabel("right answers, requests/s")
    return _svg(figure, panel)


def percentile_chart(reports: list[Report]) -> bytes:
    """The latency at each percentile, at a few rates; dashed, what a closed loop would report."""
    figure, panel = _figure()
    if len(reports) == 1:
        steps = kept_up(reports[0]) or reports[0]["steps"]
        chosen = sorted({0, len(steps) // 2, len(steps) - 1})
        for index, ink in zip(chosen, INK, strict=False):
            step = steps[index]
            label = f"{number(step['offered'])}/s"
            panel.plot(*_nines(step["curve"]), color=ink, label=label)
            uncorrected = _nines(step["service_curve"])
            panel.plot(*uncorrected, color=ink, linestyle=":", label=f"{label}, from sending")
    else:
        runs = [kept_up(report) or report["steps"] for report in reports]
        common = set.intersection(*({step["offered"] for step in run} for run in runs))
        shown = [[step for step in run if step["offered"] in common] or run for run in runs]
        for steps, line, name in zip(shown, LINES, "AB", strict=True):
            for index, ink in zip(sorted({0, len(steps) - 1}), INK, strict=False):
                label = f"{name}: {number(steps[index]['offered'])}/s"
                curve = _nines(steps[index]["curve"])
                panel.plot(*curve, color=ink, linestyle=line, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    ticks = {1: "0%", 10: "90%", 100: "99%", 1000: "99.9%", 10_000: "99.99%", 100_000: "99.999%"}
    panel.set_xticks(list(ticks), list(ticks.values()))
    panel.minorticks_off()
    longest = max(
        len(step["curve"]) and step["curve"][-1][0] for r in reports for step in r["steps"]
    )
    panel.set_xlim(1, max(10, 1 / (1 - longest / 100)))
    panel.set_xlabel("percentile of requests")
    panel.set_ylabel("latency, ms (log)")
    # Each rate's, or each run's, lines in a column.
    return _svg(figure, panel, legend_columns=3 if len(reports) == 1 else 2)


CHARTS = (
    ("Latency against the offered rate", latency_chart),
    ("Right answers against the offered rate", rate_chart),
    ("Latency at each percentile", percentile_chart),
)


def _figure() -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.fonttype": "path", "font.size": 10, "lines.markersize": 4.5})
    return pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")


def _nines(curve: list[list[float]]) -> tuple[list[float], list[float]]:
    """Percentiles as 1/(1-p), where each nine is as wide as the one before."""
    return [1 / (1 - p / 100) for p, _ in curve], [latency for _, latency in curve]


def _mark_limits(panel: Any, reports: list[Report]) -> None:
    """Of a single run, shade the steps where it was saturated, or its generator the limit."""
    right = 1.03 * max(step["offered"] for report in reports for step in report["steps"])
    panel.set_xlim(0, right)
    if len(reports) > 1:
        return
    steps = sorted(reports[0]["steps"], key=lambda step: step["offered"])
    rates = [step["offered"] for step in steps]
    edges = [0, *((a + b) / 2 for a, b in itertools.pairwise(rates)), right]
    for name, label, ink in (
        ("saturated", "saturated", "#d55e00"),
        ("generator_limited", "generator is the limit", "#777777"),
    ):
        for step, left, right in zip(steps, edges, edges[1:], strict=False):
            if step[name]:
                panel.axvspan(left, right, color=ink, alpha=0.12, lw=0, label=label)
                label = "_"  # in the legend once


def _svg(figure: Any, panel: Any, legend_columns: int = 4) -> bytes:
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    if panel.get_yscale() == "log":
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.get_xscale() == "linear":
        panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8.5, frameon=False, loc="outside upper left", ncols=legend_columns)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return file.getvalue()


# HTML.

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .6em; border-bottom: 1px solid #8886; text-align: right; }
th { border-bottom: 2px solid; } .facts td, .facts th { text-align: left; }
.facts th { border-bottom: 1px solid #8886; font-weight: 600; }
.wide { overflow-x: auto; } figure { margin: 1em 0; break-inside: avoid; }
img { width: 100%; height: auto; }
/* The charts are drawn on white: this turns their light and dark round and keeps their colours. */
@media (prefers-color-scheme: dark) { img { filter: invert(0.9) hue-rotate(180deg); } }
"""


def page(reports: list[Report]) -> str:
    """One HTML file that needs nothing else."""
    title = "Load test" if len(reports) == 1 else "Two load tests compared"
    headings, table = rows(reports)
    parts = [f"<h1>{title}</h1>"]
    for report, name in zip(reports, "AB", strict=False):
        if len(reports) > 1:
            parts.append(f"<h2>Run {name}</h2>")
        parts.append(f"<p>{html.escape(_origin(report))}</p>{_list(conclusions(report))}")
    for caption, draw in CHARTS:
        image = base64.b64encode(draw(reports)).decode()
        parts.append(
            f'<figure><figcaption><h2>{caption}</h2></figcaption><img alt="{caption}" '
            f'src="data:image/svg+xml;base64,{image}"></figure>'
        )
    parts.append(f'<h2>Steps</h2><div class="wide">{_table(headings, table)}</div>')
    parts.append(
        "<p>Latency counts from a request's arrival (Poisson, at the offered rate), whether or not "
        "a connection was free: corrected for coordinated omission. <em>From sending</em> is what "
        "a load tool that waits for each reply would report. <em>late</em> is the generator's own "
        "delay in sending, and is part of the latency; <em>busy</em> the share of its time.</p>"
    )
    for report, name in zip(reports, "AB", strict=False):
        for section in ("checks", "wrk", "settings", "machine"):
            if facts := report.get(section):
                run = f"Run {name}: " if len(reports) > 1 else ""
                parts.append(f"<h2>{run}{section.capitalize()}</h2>{_facts(facts)}")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _origin(report: Report) -> str:
    """Of which run the report is. An older report has no date and no commit."""
    facts = {"version": report["version"]} | report["machine"]
    named = ("date", "version", "commit", "processor", "memory", "system")
    return ", ".join(f"{name} {facts[name]}" for name in named if facts.get(name))


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in sentences) + "</ul>"


def _table(headings: list[str], table: list[Row]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>\n"
        for line in table
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _facts(facts: dict[str, Any]) -> str:
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>\n"
        for name, value in facts.items()
    )
    return f'<table class="facts">{lines}</table>'
