"""The second run of the tests that failed, on small suites of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.second_run import MOST_FAILURES, NOTES
from tests.harness.service import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Suite:
    """A suite of one module, whose `runs` is how many times each of its tests was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    race: as in the project\n")
        (folder / "conftest.py").write_text(
            "from tests.harness.run_record import RunRecord\n\n"
            "def pytest_configure(config):\n"
            "    config.pluginmanager.register(RunRecord())\n"
        )

    def write(self, tests: str) -> None:
        """`runs()` counts its calls by the name of the test, over all runs of the suite."""
        (self.folder / "test_suite.py").write_text(
            "import os, pathlib, time\nimport pytest\n\n"
            "def runs(name):\n"
            "    log = pathlib.Path(__file__).with_name(name + '.log')\n"
            "    with log.open('a') as file:\n"
            "        file.write('.')\n"
            "    return len(log.read_text())\n\n" + tests
        )

    def runs(self, name: str) -> int:
        log = self.folder / f"{name}.log"
        return len(log.read_text()) if log.exists() else 0

    def play(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.play_command(sys.executable, "-m", "pytest", *options)

    def play_command(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scripts.second_run", *command],
            cwd=self.folder,
            env=environment() | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=50,
        )

    @property
    def notes(self) -> str:
        file = self.folder / NOTES
        return file.read_text() if file.exists() else ""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


ONCE = "def test_once(): assert runs('once') == 2\n"
"""Fails in its first run alone."""
BYSTANDER = "def test_bystander(): assert runs('bystander')\n"


def test_command_that_succeeds_is_run_once(suite: Suite) -> None:
    suite.write(BYSTANDER)
    ended = suite.play()
    assert ended.returncode == 0
    assert suite.runs("bystander") == 1
    assert "second run" not in ended.stdout
    assert suite.notes == ""


@pytest.mark.parametrize(
    "options", [(), ("-n2",), ("-n2", "--dist", "loadgroup")], ids=["alone", "xdist", "loadgroup"]
)
def test_test_that_fails_once_passes_and_is_named(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write(
        "@pytest.mark.xdist_group('g')\n"
        "@pytest.mark.parametrize('at', ['a@b', 'c::d [e] '])\n"
        "def test_at(at): assert runs('at' + at[0]) == 2\n" + ONCE + BYSTANDER
    )
    ended = suite.play(*options)
    assert ended.returncode == 0, ended.stdout
    assert [suite.runs(name) for name in ("ata", "atc", "once", "bystander")] == [2, 2, 2, 1]
    for name in "test_suite.py::test_once", "test_suite.py::test_at[a@b]":
        assert f"second run: {name}\n" in ended.stdout
        assert f"second run: {name}\n" in suite.notes
    assert "passed alone" in suite.notes


def test_fixture_that_fails_once_passes(suite: Suite) -> None:
    suite.write(
        "@pytest.fixture\ndef made(): assert runs('made') == 2\n\ndef test_it(made): pass\n"
    )
    assert suite.play().returncode == 0
    assert "test_suite.py::test_it" in suite.notes


def test_suite_that_make_runs_is_judged_by_the_exit_code_of_pytest(suite: Suite) -> None:
    """`make` exits with 2, whatever pytest's exit code was."""
    suite.write(ONCE)
    (suite.folder / "Makefile").write_text(f"test:\n\t{sys.executable} -m pytest -n2\n")
    assert suite.play_command("make", "test").returncode == 0
    assert "make test" in suite.notes


def test_test_that_fails_twice_fails(suite: Suite) -> None:
    suite.write(ONCE + "def test_never(): assert not runs('never')\n")
    ended = suite.play("-n2")
    assert ended.returncode == 1
    assert suite.runs("never") == 2
    assert "has failed" in ended.stdout.splitlines()[-3]
    assert suite.notes == ""


def test_test_that_is_skipped_at_its_second_run_fails(suite: Suite) -> None:
    suite.write("def test_it():\n    if runs('it') == 2: pytest.skip('why')\n    assert False\n")
    ended = suite.play()
    assert ended.returncode == 1
    assert suite.runs("it") == 2


def test_test_that_hangs_at_its_second_run_fails(suite: Suite) -> None:
    suite.write(
        "@pytest.mark.timeout(1, method='thread')\n"
        "def test_it():\n    if runs('it') == 2: time.sleep(60)\n    assert False\n"
    )
    assert suite.play().returncode == 1
    assert suite.runs("it") == 2


MANY = (
    "@pytest.mark.parametrize('n', range({}))\ndef test_many(n): assert runs(f'many{{n}}') == 2\n"
)


def test_as_many_failures_as_allowed_run_again(suite: Suite) -> None:
    suite.write(MANY.format(MOST_FAILURES))
    assert suite.play().returncode == 0


@pytest.mark.parametrize(("processes", "options"), [(1, ()), (2, ("-n2",))], ids=["alone", "xdist"])
def test_tests_that_share_a_fixture_that_failed_count_as_one(
    suite: Suite, processes: int, options: tuple[str, ...]
) -> None:
    suite.write(
        f"@pytest.fixture(scope='session')\ndef made(): assert runs('made') > {processes}\n\n"
        "@pytest.mark.parametrize('n', range(20))\ndef test_it(made, n): pass\n"
    )
    assert suite.play(*options).returncode == 0
    assert suite.notes.count("test_it[") == 20


@pytest.mark.parametrize("options", [(), ("-n2",)], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (MANY.format(MOST_FAILURES), f"{MOST_FAILURES + 1} failures are more than"),
        ("import no_such_module\n", "test_suite.py failed in the phase collect"),
        (
            "@pytest.fixture(scope='session')\n"
            "def used():\n    yield\n    assert runs('used') == 2\n"
            "def test_it(used): pass\n",
            "test_it failed in the phase teardown",
        ),
        (
            "@pytest.mark.race\ndef test_it(): assert runs('it') == 2\n",
            "test_it looks for a race",
        ),
    ],
    ids=["too many", "not collected", "teardown", "race"],
)
def test_failure_that_a_second_run_cannot_disprove_is_final(
    suite: Suite, tests: str, reason: str, options: tuple[str, ...]
) -> None:
    suite.write(ONCE + tests)
    ended = suite.play(*options)
    assert ended.returncode != 0
    assert reason in ended.stdout
    assert suite.runs("once") < 2
    assert suite.notes == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [((), "pytest did not come to its end"), (("-n2",), "test_crash failed in the phase ???")],
    ids=["alone", "xdist"],
)
def test_crash_is_final(suite: Suite, options: tuple[str, ...], reason: str) -> None:
    suite.write("def test_crash():\n    if runs('crash') == 1: os.abort()\n")
    ended = suite.play(*options)
    assert ended.returncode != 0
    assert reason in ended.stdout
    assert suite.runs("crash") == 1


def test_run_that_was_not_begun_is_final_though_an_earlier_one_has_left_its_record(
    suite: Suite,
) -> None:
    suite.write(ONCE)
    subprocess.run([sys.executable, "-m", "pytest"], cwd=suite.folder, capture_output=True)
    ended = suite.play("--no-such-option")
    assert ended.returncode == 4
    assert "pytest did not come to its end" in ended.stdout


def test_run_without_a_cache_has_no_record(suite: Suite) -> None:
    suite.write(ONCE)
    ended = suite.play("-p", "no:cacheprovider")
    assert ended.returncode == 1
    assert "INTERNALERROR" not in ended.stdout + ended.stderr
    assert "pytest did not come to its end" in ended.stdout


def test_run_that_was_interrupted_is_final(suite: Suite) -> None:
    suite.write(ONCE + "def test_then(): raise KeyboardInterrupt\n")
    ended = suite.play()
    assert ended.returncode != 0
    assert "pytest ended with exit code 2" in ended.stdout
    assert suite.runs("once") == 1
