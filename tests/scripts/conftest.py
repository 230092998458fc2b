"""Fixtures of the scripts: a copy of the project, and a file of seeded sessions."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import seed
from sesiones.settings import Settings
from tests.harness.make_run import processes
from tests.harness.redis_server import RedisServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What `make run` needs of the project, with a var/ of its own."""
    folder = tmp_path / "project"
    for name in "sesiones", "scripts", "tests/harness":
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests" / "__init__.py").touch()
    shutil.copy(ROOT / "redis.conf", folder)
    yield folder
    # Only what a failed test has left.
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def seeded(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tokens of 100 sessions of 50 users."""
    file = tmp_path_factory.mktemp("load") / "tokens"
    settings = Settings(redis_url=redis_server.url)
    seed.seed(settings, file, users=50, sessions=2)
    yield file
    seed.clean(settings, file)
