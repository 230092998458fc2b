"""Record how a run of pytest ended, where `scripts.second_run` reads it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

PATH = Path(".pytest_cache", "v", "sesiones", "run")
"""Below the folder of the run. pytest keeps its cache in the first of these folders."""


@dataclass
class Failure:
    test: str
    """Its node ID."""
    phase: str
    """`setup`, `call` or `teardown`; `collect` where a module was not collected; `???` where the
    process of the test ended, as pytest-xdist has it."""
    looks_for_a_race: bool
    cause: str = ""
    """What was raised and where, in `setup`: the same for all tests that share a broken fixture."""


@dataclass
class Run:
    exit_code: int = -1
    passed: int = 0
    failures: list[Failure] = field(default_factory=list)


class RunRecord:
    """A plugin of pytest."""

    def __init__(self) -> None:
        self._run = Run()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._run.failures.append(Failure(report.nodeid, "collect", False))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            test, phase = _without_group(report.nodeid), report.when or "???"
            crash = getattr(report.longrepr, "reprcrash", "") if phase == "setup" else ""
            failure = Failure(test, phase, "race" in report.keywords, str(crash))
            self._run.failures.append(failure)
        elif report.passed and report.when == "call":
            self._run.passed += 1

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # The processes of pytest-xdist have nothing to say: their reports come here too.
        cache = getattr(session.config, "cache", None)  # None with `-p no:cacheprovider`
        if cache is not None and not hasattr(session.config, "workerinput"):
            self._run.exit_code = int(exitstatus)
            cache.set("sesiones/run", asdict(self._run))


def read(folder: Path) -> Run | None:
    """Return how the last run in this folder ended, or None if it did not come to its end."""
    try:
        members = json.loads((folder / PATH).read_bytes())
    except FileNotFoundError:
        return None
    failures = [Failure(**each) for each in members.pop("failures")]
    return Run(**members, failures=failures)


def forget(folder: Path) -> None:
    (folder / PATH).unlink(missing_ok=True)


def _without_group(test: str) -> str:
    """`--dist loadgroup` appends `@` and the group of the test."""
    group = test.rfind("@")
    return test[:group] if group > test.rfind("]") else test
