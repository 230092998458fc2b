"""scripts/seed.py: what it makes in Redis, its file, and what an interruption leaves."""

import asyncio
import dataclasses
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from scripts import seed
from sesiones import tokens
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.settings import Settings
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store


@pytest.fixture
def settings(redis_server: RedisServer, redis: Redis) -> Settings:
    return Settings(redis_url=redis_server.url)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "load" / "tokens"


def start(redis_server: RedisServer, file: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.seed", "--tokens", str(file), *options],
        env=os.environ | {"SESIONES_REDIS_URL": redis_server.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.umask(0),
    )


def in_redis(redis: Redis) -> set[str]:
    """The names of the sessions that are there."""
    return {key.decode().rpartition(":")[2] for key in redis.scan_iter("sesiones:*:h:*", 1000)}


def in_file(path: Path) -> set[str]:
    return {tokens.digest(token) for _, token in seed.read_tokens(path)}


def test_seed_makes_the_sessions_of_its_file_as_the_service_does(
    settings: Settings, redis: Redis, file: Path
) -> None:
    made = seed.seed(settings, file, users=7, sessions=3)
    assert made == seed.read_tokens(file)
    assert in_redis(redis) == in_file(file)
    assert len({user for user, _ in made}) == 7

    async def find_all() -> list[Sesion | None]:
        store = open_store(settings.redis_url)
        found = [await store.find(token) for _, token in made]
        await store.aclose()
        return found

    for (user, _), sesion in zip(made, asyncio.run(find_all()), strict=True):
        assert sesion is not None
        assert sesion.ID_Usuario == user
        assert sesion.Fecha_Expiracion - sesion.Ultima_Actividad == settings.idle_seconds
    assert all(redis.ttl(key) > 0 for key in redis.scan_iter("sesiones:*:[su]:*"))


def test_seeding_again_makes_what_is_missing_and_changes_nothing_else(
    settings: Settings, redis: Redis, file: Path
) -> None:
    seed.seed(settings, file, users=5, sessions=2)
    before = {key: redis.dump(key) for key in redis.scan_iter("sesiones:*:h:*")}
    ended = list(before)[:3]
    redis.delete(*ended)
    text = file.read_text()
    seed.seed(settings, file, users=5, sessions=2)
    assert file.read_text() == text
    assert in_redis(redis) == in_file(file)
    assert all(redis.dump(key) == value for key, value in before.items() if key not in ended)


def test_clean_leaves_nothing_but_the_counters_and_other_users(
    settings: Settings, redis: Redis, file: Path
) -> None:
    (user, token), *_ = seed.seed(settings, file, users=5, sessions=2)

    async def others() -> Sesion:
        store = open_store(settings.redis_url)
        await store.create(user, "made by a load test")
        await store.end(token, token)
        other = await store.create(7, "laptop")
        await store.aclose()
        return other

    other = asyncio.run(others())
    assert seed.clean(settings, file) == 10
    assert not file.exists()
    assert in_redis(redis) == {tokens.digest(other.Token_Sesion)}
    assert len(list(redis.scan_iter("sesiones:*:u:*"))) == 1
    with pytest.raises(FileNotFoundError):
        seed.clean(settings, file)


def test_after_ctrl_c_the_same_command_makes_what_is_missing(
    redis_server: RedisServer, redis: Redis, file: Path
) -> None:
    size = "--users", "2000", "--sessions", "5"
    run = start(redis_server, file, *size)
    deadline = time.monotonic() + 20
    while redis.dbsize() < 1500:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=10)
    assert run.returncode == 1, errors
    assert "interrupted; the same command goes on" in errors
    assert "Traceback" not in errors
    drawn, present = in_file(file), in_redis(redis)
    assert 0 < len(present) < len(drawn) == 10_000
    assert present < drawn

    again = start(redis_server, file, *size)
    output, errors = again.communicate(timeout=20)
    assert again.returncode == 0, errors
    assert output == f"10,000 sessions of 2,000 users in {file}\n"
    assert "seeding: 10,000 of 10,000, " in errors
    assert in_file(file) == drawn == in_redis(redis)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_failure_while_tokens_are_drawn_leaves_no_file(
    settings: Settings, redis: Redis, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            seed.seed(settings, file, users=3, sessions=2)
    assert not list(file.parent.iterdir())
    seed.seed(settings, file, users=3, sessions=2)
    assert list(file.parent.iterdir()) == [file]


def test_after_an_outage_the_same_command_makes_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with RedisServer() as server:
        settings = Settings(redis_url=server.url)
        server.stop()
        with pytest.raises(StoreUnavailable):
            seed.seed(settings, file, users=10, sessions=2)
        drawn = in_file(file)
        server.start()
        seed.seed(settings, file, users=10, sessions=2)
        with server.client() as redis:
            assert in_redis(redis) == in_file(file) == drawn
        server.stop()
        with pytest.raises(StoreUnavailable):
            seed.clean(settings, file)
    assert in_file(file) == drawn


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text[:-30],
        lambda text: text + "\n",
        lambda text: text.replace("9", "7", 1),
        lambda text: text.replace("ses_", "ses-", 1),
        lambda text: text.replace("9000000000000001 ", "9000000000000007 ", 1),
        lambda text: text.replace("9", "\xb9", 1),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(
    settings: Settings, redis: Redis, file: Path, damage: Callable[[str], str]
) -> None:
    seed.seed(settings, file, users=3, sessions=2)
    text = damage(file.read_text())
    file.write_text(text, encoding="utf-8")
    before = in_redis(redis)
    for attempt in lambda: seed.seed(settings, file, 3, 2), lambda: seed.clean(settings, file):
        with pytest.raises(seed.SeedError, match="is damaged") as error:
            attempt()
        assert "ses_" not in str(error.value)
    assert file.read_text(encoding="utf-8") == text
    assert in_redis(redis) == before


def test_seed_refuses_another_size_an_open_file_and_too_many_sessions(
    settings: Settings, file: Path
) -> None:
    seed.seed(settings, file, users=3, sessions=2)
    with pytest.raises(seed.SeedError, match="6 sessions of 3 users, not 8 of 4"):
        seed.seed(settings, file, users=4, sessions=2)
    file.chmod(0o640)
    with pytest.raises(seed.SeedError, match="chmod 600"):
        seed.seed(settings, file, users=3, sessions=2)
    with pytest.raises(seed.SeedError, match="SESIONES_MAX_PER_USER"):
        seed.seed(settings, file, users=1, sessions=1001)


def test_seed_that_the_limit_refuses_is_one_line(settings: Settings, tmp_path: Path) -> None:
    """Another file has sessions of the same users."""
    settings = dataclasses.replace(settings, at_limit="refuse", max_per_user=2)
    seed.seed(settings, tmp_path / "one", 3, 2)
    with pytest.raises(seed.SeedError, match="SESIONES_AT_LIMIT is refuse"):
        seed.seed(settings, tmp_path / "other", 3, 2)


@pytest.mark.parametrize(
    ("options", "url", "line"),
    [
        (("--users", "0"), "redis://127.0.0.1:1", "whole number above 0"),
        (("--clean",), "redis://127.0.0.1:1", "No such file"),
        ((), "http://127.0.0.1", "SESIONES_REDIS_URL"),
        (("--tokens", ""), "redis://127.0.0.1:1", "seed: "),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, options: tuple[str, ...], url: str, line: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.seed", "--tokens", str(tmp_path / "no"), *options],
        env=os.environ | {"SESIONES_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 2
    assert line in ended.stderr.splitlines()[-1]


def test_progress_in_a_terminal_is_a_bar(
    redis_server: RedisServer, redis: Redis, file: Path
) -> None:
    outside, inside = pty.openpty()
    with os.fdopen(outside, "rb", 0) as terminal:
        ended = subprocess.run(
            [sys.executable, "-m", "scripts.seed", "--tokens", str(file), "--users", "500"],
            env=os.environ | {"SESIONES_REDIS_URL": redis_server.url},
            stdout=subprocess.DEVNULL,
            stderr=inside,
            timeout=20,
        )
        os.close(inside)
        shown = terminal.read(65536).decode()
    assert ended.returncode == 0
    assert f"seeding [{'#' * 30}] 5,000 of 5,000, " in shown
    assert "/s, 0 s left\r\n" in shown
    assert redis.dbsize() > 5000
