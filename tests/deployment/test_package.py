"""What is installed: the ranges of pyproject.toml and the versions of requirements.lock."""

import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==(\S+) ", LOCK, re.MULTILINE))


def requirements(*extras: str) -> Iterator[Requirement]:
    """What an installation with the extras needs."""
    options = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in options[extra])]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            yield from requirements(*requirement.extras)
        else:
            yield requirement


def test_locked_versions_are_in_the_ranges_of_the_server() -> None:
    for requirement in requirements("server"):
        assert requirement.specifier.contains(LOCKED[requirement.name]), requirement
        assert requirement.extras <= LOCKED.keys()  # redis[hiredis]


def test_library_needs_no_web_framework() -> None:
    assert {requirement.name for requirement in requirements()} == {"orjson", "redis"}
    web = {"httptools", "prometheus-client", "starlette", "uvicorn", "uvloop"}
    server = {requirement.name for requirement in requirements("server")}
    assert server == {"orjson", "redis"} | web


def test_lock_names_versions_and_hashes_alone() -> None:
    pinned = r"[a-z0-9-]+==[0-9][0-9.]*( ; python_full_version < '[0-9.]+')? \\"
    for line in LOCK.splitlines()[2:]:
        assert re.fullmatch(rf"{pinned}|    --hash=sha256:[0-9a-f]{{64}}( \\)?", line), line
    assert len(LOCKED) == LOCK.count("==")


def test_lock_has_what_the_oldest_python_needs() -> None:
    """pip refuses what is not in it."""
    oldest = {"python_version": "3.11", "python_full_version": "3.11.0", "extra": ""}
    for name in LOCKED:
        with suppress(PackageNotFoundError):  # it is for another Python
            for line in requires(name) or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate(oldest):
                    assert canonicalize_name(needed.name) in LOCKED, f"{name}: {line}"
