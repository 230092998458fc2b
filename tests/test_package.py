"""What is installed: the ranges of pyproject.toml and the versions of requirements.lock."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==(\S+) ", LOCK, re.MULTILINE))


def test_the_locked_versions_are_in_the_ranges() -> None:
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(LOCKED[requirement.name]), line
        for extra in requirement.extras:  # redis[hiredis]
            assert extra in LOCKED


def test_the_lock_names_versions_and_hashes_alone() -> None:
    for line in LOCK.splitlines()[1:]:
        assert re.fullmatch(
            r"[a-z0-9-]+==[0-9][0-9.]* \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        ), line
    assert len(LOCKED) == LOCK.count("==")
