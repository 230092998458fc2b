"""Machines for the command blocks of docs/runbooks.md."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.redis_binary import find_binary
from tests.runbooks.machines import Machine, Runbook, Start, binary_of


@pytest.fixture
def redis_cli() -> None:
    """The commands of the page need it."""
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli")


@pytest.fixture
def start(redis_cli: None, tmp_path: Path) -> Iterator[Start]:
    """Start the named machines, each with the program of its name or else the usual one."""
    with ExitStack() as stack:

        def start(*names: str, options: dict[str, str] | None = None, **kinds: str) -> Runbook:
            machines = {}
            for name in names or ("redis",):
                binary = binary_of(kinds[name]) if name in kinds else find_binary()
                machines[name] = Machine(tmp_path / name, binary, **(options or {}))
                stack.callback(machines[name].close)
                machines[name].systemctl("start")
            return Runbook(tmp_path, machines)

        yield start
