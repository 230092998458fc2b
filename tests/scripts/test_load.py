"""scripts/load.py, what `make load` runs, and the reports of a run and of two compared."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from scripts import report
from tests.harness.stores import KEY

pytestmark = pytest.mark.slow

RATES = 200, 400
INK = set(report.INK) - {"#000000"}  # the axes are black too


def run(module: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{module}", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | variables,
    )


class Made:
    """What a run left behind."""

    def __init__(self, folder: Path) -> None:
        options = "--seconds", "1", "--rates", *map(str, RATES), "--output", str(folder)
        key = folder / "key"
        key.write_text(KEY)
        self.run = run(
            *("load", *options),
            SESIONES_REDIS_TIMEOUT="5",
            SESIONES_SERVICE_KEY_FILE=str(key),
            SESIONES_REDIS_CA_FILE="of another Redis",
        )
        assert self.run.returncode == 0, self.run.stdout + self.run.stderr
        self.json = folder / "report.json"
        self.page = (folder / "report.html").read_text()
        self.report: dict[str, Any] = json.loads(self.json.read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("load"))


def charts(page: str) -> list[ElementTree.Element]:
    images = re.findall(r'<img alt="[^"]+" src="data:image/svg\+xml;base64,([^"]+)">', page)
    return [ElementTree.fromstring(base64.b64decode(image)) for image in images]


def lines_drawn(chart: ElementTree.Element) -> int:
    """How many lines in a colour of the data have more than one point."""
    paths = chart.iter("{http://www.w3.org/2000/svg}path")
    drawn = [path for path in paths if path.get("d", "").count("L") >= 1]
    return sum(any(f"stroke: {ink}" in path.get("style", "") for ink in INK) for path in drawn)


def test_each_kind_of_request_was_made_and_none_was_wrong(made: Made) -> None:
    checks = made.report["checks"]
    assert {
        *("POST /sesiones", "GET /sesiones/self", "GET /sesiones/verificar"),
        *("GET /sesiones/verificar (a guess)", "DELETE /sesiones/logoutAll", "all Aggregated"),
    } <= checks.keys()
    assert all(text.endswith(" requests, 0 failures") for text in checks.values())
    assert int(checks["all Aggregated"].split()[0].replace(",", "")) > 300
    assert len(made.report["wrk"]) == (2 if shutil.which("wrk") else 0)
    assert all(text.endswith(", 0 not answered with 200") for text in made.report["wrk"].values())


def test_report_has_a_step_for_each_rate(made: Made) -> None:
    steps = made.report["steps"]
    assert [step["offered"] for step in steps] == list(RATES)
    for step in steps:
        assert step["failures"] == {}
        assert 0.7 * step["offered"] < step["arrivals"] < 1.3 * step["offered"]
        latencies = list(step["latency_ms"].values())
        assert latencies == sorted(latencies)
        assert step["latency_ms"]["50"] >= step["service_time_ms"]["50"] > 0


def test_page_holds_what_the_json_does_and_needs_no_other_file(made: Made) -> None:
    for step in made.report["steps"]:
        cells = report.row(step)
        assert cells[4] == report.number(step["latency_ms"]["99"])
        assert "".join(f"<td>{cell}</td>" for cell in cells) in made.page
        assert all(cell in made.run.stdout for cell in cells)
    for section in "settings", "machine", "checks", "wrk":
        assert all(f"<td>{value}</td>" in made.page for value in made.report[section].values())
    for sentence in report.conclusions(made.report):
        assert f"<li>{html.escape(sentence)}</li>" in made.page
        assert sentence in made.run.stdout
    assert not re.search(r"(src|href)=.(?!data:)|@import|url\(", made.page)
    assert not re.search(r"ses_[A-Za-z0-9_-]{45}", made.page + made.run.stdout + made.run.stderr)


def test_charts_have_lines(made: Made) -> None:
    latency, rate, percentiles = map(lines_drawn, charts(made.page))
    assert latency >= len(report.PERCENTILES)
    assert rate >= 1
    assert percentiles >= 2


def test_compare_shows_the_ratio_at_each_common_rate(made: Made, tmp_path: Path) -> None:
    """The second is twice as slow at the first rate, and was not made at the other."""
    other = json.loads(made.json.read_text())
    step = other["steps"][0]
    step["latency_ms"] = {name: 2 * value for name, value in step["latency_ms"].items()}
    step["curve"] = [[percentile, 2 * value] for percentile, value in step["curve"]]
    del other["steps"][1:]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    ended = run("throughput", "--compare", str(made.json), str(path), "--output", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()[1:5]]
    assert [line[0] for line in lines] == ["A", "B", "B/A", "A"]
    assert lines[2] == ["B/A", "x1.00", *["x2.00"] * 5]
    page = (tmp_path / "compare.html").read_text()
    assert "<td>x2.00</td>" * 5 in page
    assert all(lines_drawn(chart) for chart in charts(page))


def test_compare_draws_runs_without_a_common_rate(made: Made) -> None:
    other = json.loads(made.json.read_text())
    for step in other["steps"]:
        step["offered"] += 1
    page = report.page([made.report, other])
    assert [bool(lines_drawn(chart)) for chart in charts(page)] == [True] * 3
    assert "B/A" not in page


def test_compare_refuses_an_incomplete_report(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    first = made.report["steps"][0]
    without = {name: value for name, value in first.items() if name != "curve"}
    for steps in [without], []:
        path.write_text(json.dumps(made.report | {"steps": steps}))
        ended = run("throughput", "--compare", str(path), str(made.json), "--output", str(tmp_path))
        assert ended.returncode == 2
        assert ended.stderr == f"throughput: {path} is not a report of this script\n"


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    ended = run("load", "--output", str(tmp_path), SESIONES_TOUCH_SECONDS="often")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "SESIONES_TOUCH_SECONDS" in ended.stderr
    assert not list(tmp_path.iterdir())
