"""`python -m scripts.second_run COMMAND`: run a command that runs pytest, and then the tests that
failed in it once more, alone.

A run of pytest must be the last thing that the command does, because what would follow a failure is
not done.

On a busy machine a test can fail because time ran out for it. So the command succeeds when each
test that failed passes the second time; those tests are printed, and kept in `var/second-run.txt`.
There is no second run where it would prove nothing:

- more than five tests failed, where those that share a fixture that failed count as one;
- a module was not collected, or the process of a test or of pytest ended before its time;
- a test failed while its fixtures were taken down, which other tests may have used before it;
- a test has the marker `race`: it looks for a race, which may not come a second time.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import run_record
from tests.harness.run_record import Run

MOST_FAILURES = 5
NOTES = Path("var", "second-run.txt")


def main(command: list[str]) -> int:
    """Return the exit code of the command, or 0 if each test that failed has passed since."""
    exit_code, first = _run(command)
    if exit_code == 0:
        return 0
    if reason := _why_final(first):
        _say(f"{shlex.join(command)} has failed, without a second run: {reason}")
        return exit_code
    assert first is not None
    tests = [failure.test for failure in first.failures]
    _say(f"{len(tests)} failed in {shlex.join(command)}, and run once more, alone:", *tests)
    second_code, second = _run([sys.executable, "-m", "pytest", *tests])
    # A test that is skipped now has not passed.
    if second_code or second is None or second.passed != len(tests):
        _say(f"{shlex.join(command)} has failed: not all of these passed alone:", *tests)
        return exit_code
    note = _say(f"Failed in {shlex.join(command)}, and passed alone:", *tests)
    NOTES.parent.mkdir(exist_ok=True)
    with NOTES.open("a") as notes:
        notes.write(note)
    return 0


def _run(command: list[str]) -> tuple[int, Run | None]:
    run_record.forget(Path())
    exit_code = subprocess.run(command).returncode
    return exit_code, run_record.read(Path())


def _why_final(run: Run | None) -> str | None:
    """Return why a second run would prove nothing, or None."""
    if run is None:
        return "pytest did not come to its end, or has no cache"
    failures = len({failure.cause or failure.test for failure in run.failures})
    if failures > MOST_FAILURES:
        return f"{failures} failures are more than {MOST_FAILURES}"
    for failure in run.failures:
        if failure.phase not in ("setup", "call"):
            return f"{failure.test} failed in the phase {failure.phase}"
        if failure.looks_for_a_race:
            return f"{failure.test} looks for a race"
    if run.exit_code != pytest.ExitCode.TESTS_FAILED or not run.failures:
        return f"pytest ended with exit code {run.exit_code}"
    return None


def _say(*lines: str) -> str:
    text = "".join(f"second run: {line}\n" for line in lines)
    print(text, end="", flush=True)
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
