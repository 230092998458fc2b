"""The races of tests/store/test_hazards.py, many times over: a check, a slide or a PUT against a
logout, a create against logoutAll, an expiry against a slide, a create that is tried again."""

import os
import subprocess
import sys
from collections.abc import Iterator

from scripts.chaos import Bar

ROUNDS, SHORT_ROUNDS = 100_000, 600
"""Of each race."""
SUITE_ROUNDS = 3_000
"""What the suite plays; SESIONES_TEST_ROUNDS multiplies it."""
HAZARDS = "tests/store/test_hazards.py"


def play(short: bool) -> Iterator[Bar]:
    rounds = SHORT_ROUNDS if short else ROUNDS
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/store/test_hazards.py",
            "--quiet",
            "--timeout",
            "0",
        ],
        env=os.environ | {"SESIONES_TEST_ROUNDS": str(rounds / SUITE_ROUNDS)},
        capture_output=not sys.stderr.isatty(),
        text=True,
    )
    yield Bar(
        f"no violation in {rounds:,} rounds of each race, no key without expiry at any time",
        "none" if ended.returncode == 0 else f"pytest ended with {ended.returncode}",
        ended.returncode == 0,
    )
