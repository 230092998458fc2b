"""`serve --workers`: workers that die, hang, cannot be started or outlive the first process."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sesiones.http.server import FILES_MIN, STOP_SECONDS
from sesiones.http.workers import HANG_SECONDS
from tests.harness.ports import free_port
from tests.harness.processes import connects, is_running
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true, environment, refused

pytestmark = pytest.mark.slow


def workers(log: str) -> list[int]:
    """Every one that has started, in order."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log)]


@contextmanager
def two_workers(
    redis_server: RedisServer, *flags: str, command: tuple[str, ...] = Service.command
) -> Iterator[Service]:
    new = Service("--workers", "2", *flags, SESIONES_REDIS_URL=redis_server.url)
    new.command = command
    with new as service:
        try:
            assert comes_true(lambda: service.log.count("startup complete") == 2, 10)
            yield service
        finally:
            for pid in workers(service.log):  # should the test have failed
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def stop(service: Service) -> float:
    """How long it takes."""
    begun = time.monotonic()
    assert service.stop() == 0
    assert comes_true(lambda: not any(map(is_running, workers(service.log))), 1)
    return time.monotonic() - begun


def test_workers_end_when_the_supervisor_is_killed(redis_server: RedisServer) -> None:
    with two_workers(redis_server) as service:
        pids = workers(service.log)
        service.process.kill()
        service.process.wait()
        assert comes_true(lambda: not any(map(is_running, pids)), 5)
        assert service.log.count("the first process is gone") == 2
        with two_workers(redis_server, "--port", str(service.port)) as next_one:
            assert next_one.request("GET", "/livez").status == 200


def test_workers_answer_what_is_in_flight_when_the_supervisor_is_killed(
    redis_server: RedisServer,
) -> None:
    with two_workers(redis_server) as service, service.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        service.process.kill()
        assert comes_true(lambda: not connects(service.port), 5)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer


def test_worker_that_cannot_be_started_is_tried_again(redis_server: RedisServer) -> None:
    with two_workers(redis_server) as service:
        parent = service.process.pid
        limits = resource.prlimit(parent, resource.RLIMIT_NOFILE)
        resource.prlimit(parent, resource.RLIMIT_NOFILE, (3, limits[1]))
        for pid in workers(service.log):
            os.kill(pid, signal.SIGKILL)
        assert comes_true(lambda: "cannot be started" in service.log, 5), service.log
        time.sleep(2.5)
        assert service.log.count("cannot be started") == 1
        resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
        assert comes_true(lambda: service.log.count("startup complete") == 4, 10)
        assert service.request("GET", "/livez").status == 200
        assert stop(service) < STOP_SECONDS
        assert "Traceback" not in service.log


def test_stop_while_no_worker_can_be_started_ends_the_service(redis_server: RedisServer) -> None:
    with two_workers(redis_server) as service:
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (3, 3))
        os.kill(workers(service.log)[0], signal.SIGKILL)
        assert comes_true(lambda: "cannot be started" in service.log, 5), service.log
        assert stop(service) < 3


LIMITED = ("sh", "-c", 'ulimit -n "$0" && exec "$@"')


@pytest.mark.parametrize("limit", ["22", "63"])
@pytest.mark.parametrize("count", ["1", "2"])
def test_start_with_too_few_file_descriptors_is_one_line_and_exit_1(limit: str, count: str) -> None:
    serve = sys.executable, "-m", "sesiones", "serve", "--port", "0", "--workers", count
    code, line = refused([*LIMITED, limit, *serve])
    assert code == 1
    assert f"at most {limit} open files" in line


@pytest.mark.parametrize("count", ["1", "2"])
def test_service_with_the_fewest_file_descriptors_serves_and_stops(
    redis_server: RedisServer, count: str
) -> None:
    class Limited(Service):
        command = (*LIMITED, str(FILES_MIN), *Service.command)

    with Limited("--workers", count, SESIONES_REDIS_URL=redis_server.url) as service:
        assert service.request("GET", "/readyz").status == 200
        assert stop(service) < 3
        assert "Traceback" not in service.log


def test_hung_worker_does_not_delay_a_stop_beyond_its_bound(redis_server: RedisServer) -> None:
    with two_workers(redis_server) as service:
        os.kill(workers(service.log)[0], signal.SIGSTOP)
        assert stop(service) < STOP_SECONDS
        assert "does not end and is killed" in service.log


def test_dead_worker_is_replaced_at_once_beside_a_hung_one(redis_server: RedisServer) -> None:
    with two_workers(redis_server) as service:
        hung, dead = workers(service.log)
        os.kill(hung, signal.SIGSTOP)
        time.sleep(1)
        os.kill(dead, signal.SIGKILL)
        assert comes_true(lambda: service.log.count("startup complete") == 3, 2.5)
        assert is_running(hung)


def test_hung_worker_is_killed_and_replaced(redis_server: RedisServer) -> None:
    with two_workers(redis_server) as service:
        hung = workers(service.log)[0]
        os.kill(hung, signal.SIGSTOP)
        assert comes_true(lambda: not is_running(hung), HANG_SECONDS + 3)
        assert comes_true(lambda: service.log.count("startup complete") == 3, 5)
        assert stop(service) < 3


def test_dead_worker_is_replaced_where_sigchld_was_ignored(
    redis_server: RedisServer,
) -> None:
    with two_workers(redis_server, command=IGNORING_CHILDREN) as service:
        os.kill(workers(service.log)[0], signal.SIGKILL)
        assert comes_true(lambda: service.log.count("startup complete") == 3, 4)
        assert "died: exit code -9" in service.log
        stop(service)
        assert "does not end" not in service.log


IGNORING_CHILDREN = (
    sys.executable,
    "-c",
    """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "sesiones", *sys.argv[1:]])
""",
)


def test_pause_of_the_supervisor_kills_no_worker(redis_server: RedisServer) -> None:
    with two_workers(redis_server) as service:
        group = [*workers(service.log), service.process.pid]
        for pid in group:  # as when the machine is suspended
            os.kill(pid, signal.SIGSTOP)
        time.sleep(HANG_SECONDS + 1)
        for pid in reversed(group):
            os.kill(pid, signal.SIGCONT)
        time.sleep(1)
        assert workers(service.log) == group[:2]
        assert all(map(is_running, group))


STUCK = """
import threading, time
from sesiones.http import server
from sesiones import signals
signals.begin()
async def hang(*_): time.sleep(60)
server._Server.{method} = hang
from sesiones.__main__ import main
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("method", ["shutdown", "on_tick"])
def test_event_loop_that_hangs_does_not_delay_a_stop_beyond_its_bound(
    redis_server: RedisServer, tmp_path: Path, method: str, count: str
) -> None:
    program = tmp_path / "stuck.py"
    program.write_text(STUCK.format(method=method))
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(program), "serve", "--port", str(port), "--workers", count],
        env=environment() | {"SESIONES_REDIS_URL": redis_server.url},
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert comes_true(lambda: connects(port), 10)
        time.sleep(1)
        begun = time.monotonic()
        process.terminate()
        process.wait(timeout=20)
        assert time.monotonic() - begun < STOP_SECONDS + 0.5
        assert comes_true(lambda: not connects(port), 1)
