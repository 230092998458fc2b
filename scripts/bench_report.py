"""The table and the chart of scripts/bench.py."""

import dataclasses
import statistics
from pathlib import Path

from scripts.bench_servers import SERVERS

REFERENCES = "webdis", "nginx"
"""The servers that every other one is compared with, round by round."""


@dataclasses.dataclass
class Round:
    server_us: float
    redis_us: float
    rate: float
    p50_us: float
    p99_us: float
    hits: float | None
    """The share of the checks that the near-cache answered; None where there is no near-cache."""


def median(rounds: list[Round], field: str) -> float:
    return float(statistics.median(getattr(one, field) for one in rounds))


def table(results: dict[str, list[Round]]) -> str:
    """The medians; the ratios are of the rounds side by side."""
    lines = [
        f"{'server':<15}{'what':<34}{'CPU us':>8}{'Redis us':>9}{'hits':>7}{'req/s':>9}"
        f"{'p50 us':>8}{'p99 us':>8}" + "".join(f"{f'/{name}':>9}" for name in REFERENCES)
    ]
    for server in SERVERS:
        if not (rounds := results.get(server.name)):
            continue
        shares = [one.hits for one in rounds if one.hits is not None]
        hits = f"{statistics.median(shares):.1%}" if shares else "-"
        lines.append(
            f"{server.name:<15}{server.what:<34}{median(rounds, 'server_us'):>8.1f}"
            f"{median(rounds, 'redis_us'):>9.1f}{hits:>7}{median(rounds, 'rate'):>9.0f}"
            f"{median(rounds, 'p50_us'):>8.0f}{median(rounds, 'p99_us'):>8.0f}"
            + "".join(f"{ratio(rounds, results.get(name)):>9}" for name in REFERENCES)
        )
    return "\n".join(lines)


def ratio(rounds: list[Round], reference: list[Round] | None) -> str:
    """Of the CPU times of the server, as the median of the rounds side by side."""
    if not reference:
        return "-"
    pairs = zip(rounds, reference, strict=True)
    return f"{statistics.median(a.server_us / b.server_us for a, b in pairs):.2f}"


def draw(everything: dict[int, dict[str, list[Round]]], origin: str, path: Path) -> None:
    """Bars of CPU time a request, one panel for each number of connections. ``origin``: of which
    run they are, below the chart."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(everything),
        1,
        figsize=(8, 1.0 + 0.42 * sum(map(len, everything.values()))),
        squeeze=False,
        sharex=True,
    )
    for (connections, results), panel in zip(everything.items(), panels[:, 0], strict=True):
        shown = [server for server in SERVERS if server.name in results][::-1]
        names = [f"{server.product}: {server.what}" for server in shown]
        ours = ["#1b6ca8" if server.product == "sesiones" else "#9aa5b1" for server in shown]
        server_us = [median(results[server.name], "server_us") for server in shown]
        redis_us = [median(results[server.name], "redis_us") for server in shown]
        panel.barh(names, server_us, color=ours)
        panel.barh(names, redis_us, left=server_us, color="white", edgecolor="#9aa5b1", hatch="///")
        for row, (one, two) in enumerate(zip(server_us, redis_us, strict=True)):
            figures = f"{one:.1f} + {two:.1f}" if two else f"{one:.1f}"
            panel.text(one + two + 0.3, row, figures, va="center", fontsize=8)
        panel.set_title(f"{connections} keep-alive connections", fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, labelbottom=True)
    # The figures at the ends of the bars need room.
    panel.set_xlim(right=1.15 * max(each.dataLim.x1 for each in panels[:, 0]))
    panel.set_xlabel("CPU time a request, microseconds: the server + Redis (hatched)", fontsize=9)
    figure.text(0.01, 0.005, origin, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=150)
