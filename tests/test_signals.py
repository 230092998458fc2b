"""Signals from the first moment of a serving process on: which end it, and which it ignores."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, children, comes_true, environment, serves

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SERVE = [sys.executable, "-m", "sesiones", "serve"]
COMMANDS = {
    "module": SERVE,
    "script": [str(Path(sys.executable).with_name("sesiones")), "serve"],
    "make run": [sys.executable, "-m", "scripts.run"],
}


@pytest.fixture
def slow_imports(tmp_path: Path) -> tuple[Path, Path]:
    """A folder for PYTHONPATH with a `starlette` that is not imported within this test, and a file
    that is there once it is being imported."""
    begun = tmp_path / "begun"
    text = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(30)"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "starlette.py").write_text(text)
    return tmp_path / "modules", begun


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("command", ["module", "script"])
def test_signal_during_the_imports_ends_the_process(
    slow_imports: tuple[Path, Path], command: str, number: signal.Signals
) -> None:
    modules, begun = slow_imports
    with subprocess.Popen(
        COMMANDS[command],
        env=environment() | {"PYTHONPATH": str(modules)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert comes_true(begun.exists, 10)
        process.send_signal(number)
        assert process.wait(timeout=5) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode == 0
    )


needs_namespaces = pytest.mark.skipif(not may_unshare(), reason="no PID namespaces")


@contextmanager
def as_pid_1(command: list[str], **variables: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The command as the first process of a namespace, and its process ID outside."""
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", *command],
        env=environment() | variables,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert comes_true(lambda: children(process.pid) != [], 5)
            (pid,) = children(process.pid)
            yield process, pid
        finally:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)


@needs_namespaces
@pytest.mark.parametrize("command", ["module", "script"])
def test_signal_during_the_imports_ends_pid_1(
    slow_imports: tuple[Path, Path], command: str
) -> None:
    modules, begun = slow_imports
    with as_pid_1(COMMANDS[command], PYTHONPATH=str(modules)) as (process, pid):
        assert comes_true(begun.exists, 10)
        os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=5) == 0


@needs_namespaces
@pytest.mark.parametrize("workers", ["1", "2"])
def test_signal_at_any_moment_of_a_start_ends_pid_1(
    redis_server: RedisServer, workers: str
) -> None:
    """The first moment is when the process has its handler."""
    for delay in 0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6:
        flags = ["--port", "0", "--workers", workers]
        with as_pid_1([*SERVE, *flags], SESIONES_REDIS_URL=redis_server.url) as (process, pid):
            assert comes_true(lambda pid=pid: catches(pid, signal.SIGTERM), 5)  # type: ignore[misc]
            time.sleep(delay)
            os.kill(pid, signal.SIGTERM)
            assert process.wait(timeout=5) == 0, delay
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()


def catches(pid: int, number: signal.Signals) -> bool:
    match = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return match is not None and bool(int(match[1], 16) >> (number - 1) & 1)


def ignoring(*numbers: signal.Signals) -> Callable[[], Any]:
    """For preexec_fn: ignore the signals, as nohup does."""
    return lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("command", ["module", "make run"])
def test_signal_that_was_ignored_at_the_start_stays_ignored(
    redis_server: RedisServer, command: str, workers: str, number: signal.Signals
) -> None:
    port = free_port()
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_WORKERS": workers}
    with subprocess.Popen(
        COMMANDS[command],
        cwd=ROOT,
        env=environment() | variables | {"SESIONES_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=ignoring(number),
        start_new_session=True,
    ) as process:
        try:
            for _ in range(3):
                os.killpg(process.pid, number)  # from the first moment on
                time.sleep(0.1)
            assert comes_true(lambda: serves(port), 10)
            time.sleep(0.5)
            group = children(process.pid)
            os.killpg(process.pid, number)
            time.sleep(0.5)
            assert serves(port)
            assert children(process.pid) == group
        finally:
            process.terminate()
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_hangup_that_is_not_ignored_ends_the_whole_service(
    redis_server: RedisServer, workers: str
) -> None:
    with Service("--workers", workers, SESIONES_REDIS_URL=redis_server.url) as service:
        assert comes_true(lambda: service.log.count("startup complete") == int(workers), 10)
        for pid in [service.process.pid, *children(service.process.pid)]:
            os.kill(pid, signal.SIGHUP)
        assert service.process.wait(timeout=5) == 0
        assert "Traceback" not in service.log


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_files_are_not_given_to_connections(
    redis_server: RedisServer, closed: str
) -> None:
    """Otherwise the listening socket could get the number of standard error."""
    port = free_port()
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_ACCESS_LOG": "1"}
    with subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *SERVE, "--port", str(port)],
        env=environment() | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert comes_true(lambda: serves(port), 10)
        for descriptor in re.findall(r"\d", closed):
            assert os.readlink(f"/proc/{process.pid}/fd/{descriptor}") == os.devnull
        assert serves(port)
        process.terminate()
        assert process.wait(timeout=5) == 0
