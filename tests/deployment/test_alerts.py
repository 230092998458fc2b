"""The alert rules: each fires on what it is for, stays silent in a failover, and leads to a section
of docs/alerts.md that says what to do."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DOCS / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
PAGE = (DOCS / "alerts.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
MINUTES = 40

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool: apt-get install prometheus"
)


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    assert list(SECTIONS) == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_runbook_of_an_alert_is_its_section(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"
    assert {"summary", "description"} < rule["annotations"].keys()


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_section_says_what_it_means_where_to_look_and_what_to_do(section: str) -> None:
    parts = re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE)
    assert parts == ["Means", "Look at first", "Do", "Harmless when"]


def test_command_of_the_page_makes_links_of_the_paths() -> None:
    command = re.search(r"```sh\n(sed .*)\n```", PAGE)
    assert command is not None
    shown = subprocess.check_output(["sh", "-ec", command[1]], cwd=DOCS.parent, text=True)
    for group in yaml.safe_load(shown)["groups"]:
        for rule in group["rules"]:
            url = f"https://wiki.example.com/sesiones/docs/alerts.md#{rule['alert'].lower()}"
            assert rule["annotations"]["runbook_url"] == url


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_panels_that_a_section_names_exist(rule: dict[str, Any]) -> None:
    dashboard = orjson.loads((DOCS / "grafana.json").read_bytes())
    titles = {panel["title"] for panel in dashboard["panels"]} | {"Targets"}
    assert set(re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", SECTIONS[rule["alert"]])) <= titles


# What promtool says of them


class Case(NamedTuple):
    """Series, sampled every 15 s, in promtool's notation. ``fires_at``: the minute at which the
    alert is there, and two minutes before which it has not been; without one it never is."""

    series: dict[str, str]
    fires_at: int | None = None


NODE = 'instance="a:8000",job="sesiones"'
UP = {f"up{{{NODE}}}": "1x160", f'sesiones_build_info{{{NODE},version="1"}}': "1x160"}


def series(name: str, values: str, labels: str = "") -> dict[str, str]:
    return UP | {f"{name}{{{NODE}{labels and ',' + labels}}}": values}


def check_outcomes(valid: str, other: str, outcome: str) -> dict[str, str]:
    return series("sesiones_checks_total", valid, 'outcome="valid"') | series(
        "sesiones_checks_total", other, f'outcome="{outcome}"'
    )


def latencies(slow: int) -> dict[str, str]:
    name, operation = "sesiones_operation_seconds_bucket", 'operation="check",le='
    return (
        series(name, f"0+{100 - slow}x160", f'{operation}"0.01"')
        | series(name, "0+100x160", f'{operation}"0.1"')
        | series(name, "0+100x160", f'{operation}"+Inf"')
    )


ERRORS = "sesiones_redis_errors_total"
REFUSED, TIMEOUT = 'reason="refused"', 'reason="timeout"'
FOR_30_S = "0x40 100 200 200x120"
"""A counter: nothing for 10 minutes, 30 s in which it rises, nothing after that."""

CASES: dict[str, tuple[str, Case]] = {
    "all is well": ("SesionesDown", Case(UP)),
    "a node is down": (
        "SesionesDown",
        Case(UP | {f"up{{{NODE}}}": "1x40 0x120"}, 12),
    ),
    "a node restarts": ("SesionesDown", Case(UP | {f"up{{{NODE}}}": "1x40 0x2 1x120"})),
    "no node is known": ("SesionesAbsent", Case({"other": "1x160"}, 3)),
    "nodes are known": ("SesionesAbsent", Case(UP)),
    "nodes are lost": (
        "SesionesAbsent",
        Case(dict.fromkeys(UP, "1x40"), 18),
    ),
    "checks are 503s": (
        "SesionesChecksUnavailable",
        Case(check_outcomes("0+1000x160", "0x40 0+50x120", "unavailable"), 14),
    ),
    "checks are 503s in a failover": (
        "SesionesChecksUnavailable",
        Case(check_outcomes("0+1000x160", "0x40 15000 30000 30000x120", "unavailable")),
    ),
    "one write is refused": (
        "SesionesWritesRefused",
        Case(series(ERRORS, "0x40 1x120", REFUSED)),
    ),
    "writes are refused in a failover": (
        "SesionesWritesRefused",
        Case(series(ERRORS, FOR_30_S, REFUSED)),
    ),
    "two failovers follow": (
        "SesionesWritesRefused",
        Case(series(ERRORS, "0x40 100 200 200x40 300 400 400x78", REFUSED)),
    ),
    "writes are refused for minutes": (
        "SesionesWritesRefused",
        Case(series(ERRORS, "0x40 0+1x120", REFUSED), 15),
    ),
    "few writes are refused for minutes": (
        "SesionesWritesRefused",
        Case(series(ERRORS, "0x40 1x4 2x4 3x4 4x4 5x4 6x4 7x4 8x4 9x4", REFUSED), 15),
    ),
    "calls fail for minutes": (
        "SesionesRedisErrors",
        Case(series(ERRORS, "0x40 0+10x120", TIMEOUT), 17),
    ),
    "calls fail in a failover": (
        "SesionesRedisErrors",
        Case(series(ERRORS, "0x40 15000 30000 30000x120", TIMEOUT)),
    ),
    "checks are slow": ("SesionesChecksSlow", Case(latencies(5), 6)),
    "checks are fast": ("SesionesChecksSlow", Case(latencies(0))),
    "most tokens are not live": (
        "SesionesManyInvalidChecks",
        Case(check_outcomes("0+10x160", "0+20x160", "invalid"), 11),
    ),
    "few tokens are not live": (
        "SesionesManyInvalidChecks",
        Case(check_outcomes("0+20x160", "0+10x160", "invalid")),
    ),
    "one answer is a 500": (
        "SesionesInternalErrors",
        Case(series("sesiones_http_responses_total", "0x40 1x120", 'status="500"'), 12),
    ),
    "answers are 503s": (
        "SesionesInternalErrors",
        Case(
            series("sesiones_http_responses_total", "0+9x160", 'status="503"')
            | series("sesiones_http_responses_total", "0x160", 'status="500"')
        ),
    ),
    "files are nearly used up": (
        "SesionesFilesExhausted",
        Case(
            series("process_open_fds", "20x40 900x120") | series("process_max_fds", "1024x160"), 17
        ),
    ),
    "files are free": (
        "SesionesFilesExhausted",
        Case(series("process_open_fds", "800x160") | series("process_max_fds", "1024x160")),
    ),
    "logins end sessions": (
        "SesionesAtTheLimit",
        Case(series("sesiones_sessions_ended_total", "0+30x160", 'reason="limit"'), 23),
    ),
    "few logins end sessions": (
        "SesionesAtTheLimit",
        Case(series("sesiones_sessions_ended_total", "0+10x160", 'reason="limit"')),
    ),
    "the lease is missing": (
        "SesionesCacheLeaseMissing",
        Case(series("sesiones_cache_lease_missing", "0x40 1x120"), 12),
    ),
    "the lease comes back": (
        "SesionesCacheLeaseMissing",
        Case(series("sesiones_cache_lease_missing", "0x40 1x1 0x118")),
    ),
}


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires = {alert for alert, case in CASES.values() if case.fires_at is not None}
    silent = {alert for alert, case in CASES.values() if case.fires_at is None}
    assert fires == silent == {rule["alert"] for rule in RULES}


@needs_promtool
def test_alerts_fire_on_what_they_are_for_and_not_in_a_failover(tmp_path: Path) -> None:
    """One run of promtool for all: a failure names its case."""
    tests = []
    for name, (alert, case) in CASES.items():
        firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
        last = MINUTES if case.fires_at is None else case.fires_at - 2
        moments: dict[str, tuple[int, list[object]]] = {
            f"count_over_time({firing}[{last}m])": (last, []),
        }
        if case.fires_at is not None:
            moments[f"count({firing})"] = case.fires_at, [{"labels": "{}", "value": 1}]
        tests.append(
            {
                "name": name,
                "interval": "15s",
                "input_series": [{"series": one, "values": v} for one, v in case.series.items()],
                "promql_expr_test": [
                    {"expr": query, "eval_time": f"{minute}m", "exp_samples": samples}
                    for query, (minute, samples) in moments.items()
                ],
            }
        )
    file = tmp_path / "test.yml"
    rules = {"rule_files": [str(DOCS / "alerts.yml")], "evaluation_interval": "15s"}
    file.write_bytes(orjson.dumps(rules | {"tests": tests}))  # JSON is YAML
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
