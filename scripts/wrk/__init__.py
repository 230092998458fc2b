"""wrk: a closed loop, whose rate is a server's limit."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).parent
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Result(NamedTuple):
    """``failed``: requests without an answer, or with one that is neither a 2xx nor a 3xx."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


def run(
    url: str,
    *,
    connections: int,
    seconds: int,
    script: Path | None = None,
    arguments: tuple[str, ...] = (),
    headers: tuple[str, ...] = (),
    core: int | None = None,
) -> Result:
    """``arguments``: of the script; ``core``: the only one that it may use. Raises RuntimeError."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += [word for header in headers for word in ("-H", header)]
    command += ["-s", str(script)] if script else []
    ended = subprocess.run(
        [*command, url, "--", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
    )
    text = ended.stdout
    requests = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec: *([\d.]+)", text)
    percentiles = {
        percent: float(value) * UNITS[unit]
        for percent, value, unit in re.findall(r"^ +(\d+)% +([\d.]+)(us|ms|s) *$", text, re.M)
    }
    if ended.returncode or requests is None or rate is None:
        raise RuntimeError(f"wrk: {text}{ended.stderr}")
    failed = re.findall(r"Non-2xx or 3xx responses: (\d+)", text)
    for counts in re.findall(r"Socket errors: (.*)", text):
        failed += re.findall(r"\d+", counts)
    return Result(
        int(requests[1]),
        float(rate[1]),
        percentiles["50"],
        percentiles["99"],
        sum(map(int, failed)),
    )
