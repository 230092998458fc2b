"""What /metrics says of HTTP and of the processes: responses by status, connections, CPU, memory
and files, summed over the workers."""

import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from sesiones import tokens
from sesiones.http.operations import Exposition
from sesiones.http.problems import TITLES
from sesiones.metrics import STATUSES, Metrics
from sesiones.prometheus import MetricsCollector
from tests.harness.api import FORM, SERVICE
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, children, comes_true
from tests.harness.stores import service_variables

CACHED = {"SESIONES_CACHE_SECONDS": "60", "SESIONES_TOUCH_SECONDS": "60"}


@pytest.fixture(
    scope="module",
    params=[
        ({}, "fast", "1"),
        ({}, "httptools", "1"),
        ({}, "fast", "2"),
        (CACHED, "fast", "1"),
        (CACHED, "httptools", "2"),
        ({"SESIONES_ACCESS_LOG": "1"}, "fast", "1"),
    ],
    ids=["fast", "httptools", "workers", "cached", "cached-workers", "logged"],
)
def counting(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Service]:
    variables, http, workers = request.param
    flags = "--http", http, "--workers", workers
    with Service(*flags, **service_variables(redis_server.url) | variables) as service:
        yield service


def value(service: Service, name: str) -> float:
    text = service.request("GET", "/metrics").body.decode()
    match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert match is not None, name
    return float(match[1])


def responses(service: Service) -> dict[int, float]:
    """By status, without zeros."""
    text = service.request("GET", "/metrics").body.decode()
    found = re.findall(r'^sesiones_http_responses_total\{status="(\d+)"\} (\S+)$', text, re.M)
    assert [int(status) for status, _ in found] == list(STATUSES)
    return {int(status): float(count) for status, count in found if float(count)}


def test_statuses_are_those_that_the_service_answers_with() -> None:
    assert {200, 201, *TITLES} == set(STATUSES)


def test_every_response_is_counted_once_by_its_status(counting: Service) -> None:
    made = counting.new_session(1799)
    token = made["Token_Sesion"]
    before = responses(counting)
    caller, dead = {"x-auth-token": token}, {"x-auth-token": tokens.make(7)}
    expected: dict[int, int] = {}

    def ask(status: int, *request: object) -> None:
        assert counting.request(*request).status == status  # type: ignore[arg-type]
        expected[status] = expected.get(status, 0) + 1

    for path in "/sesiones/self", "/sesiones/verificar":
        for _ in range(4):  # asked of Redis, answered from memory, from a template, as a repeat
            ask(200, "GET", path, caller)
        ask(200, "GET", path, caller | {"Cache-Control": "no-cache"})
        ask(200, "HEAD", path, caller)
        ask(200, "GET", path, caller | {"Connection": "close"})
        ask(401, "GET", path, dead)
        ask(401, "GET", path, {"x-auth-token": "x"})
        ask(401, "GET", path)
    ask(200, "GET", "/sesiones", caller)
    ask(201, "POST", "/sesiones", SERVICE | FORM, "ID_Usuario=1799&Dispositivo=d")
    ask(415, "POST", "/sesiones", SERVICE | {"Content-Type": "text/plain"}, "x")
    ask(422, "POST", "/sesiones", SERVICE | FORM, "ID_Usuario=x")
    ask(404, "GET", "/nada")
    ask(405, "PATCH", "/sesiones")
    ask(403, "DELETE", f"/sesiones/logout?Token_Sesion={other_users(counting)}", caller)
    expected[201] += 1
    ask(200, "DELETE", f"/sesiones/logout?Token_Sesion={token}", caller)
    for path in "/livez", "/readyz", "/healthz", "/metrics":
        counting.request("GET", path)
    for data, status in (
        (b"x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: %b\r\n" % (b"x" * 20_000), 431),
    ):
        assert counting.raw(data).startswith(b"HTTP/1.1 %d " % status)
        expected[status] = expected.get(status, 0) + 1
    after = responses(counting)
    assert {
        status: after[status] - before.get(status, 0)
        for status in after
        if after[status] != before.get(status, 0)
    } == expected


def other_users(service: Service) -> str:
    token: str = service.new_session(1800)["Token_Sesion"]
    return token


def test_repeats_on_one_connection_are_counted(counting: Service) -> None:
    token = counting.new_session(1799)["Token_Sesion"]
    before = responses(counting).get(200, 0)
    request = f"GET /sesiones/self HTTP/1.1\r\nHost: x\r\nx-auth-token: {token}\r\n\r\n".encode()
    with counting.connect() as connection:
        for _ in range(20):
            connection.sendall(request)
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
        connection.sendall(3 * request)  # a pipeline
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert responses(counting)[200] - before == 23


def test_open_connections_are_counted_until_they_close(counting: Service) -> None:
    name = "sesiones_http_connections"
    assert comes_true(lambda: value(counting, name) == 1, 5)  # the one that asks
    with ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(counting.connect())
        assert comes_true(lambda: value(counting, name) == 8, 5)
    assert comes_true(lambda: value(counting, name) == 1, 5)


def test_refused_body_whose_endpoint_answers_too_is_counted_once(counting: Service) -> None:
    before = responses(counting)
    data = b"DELETE /sesiones/logout HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx"
    assert counting.raw(data).count(b"HTTP/1.1 400") == 1
    time.sleep(0.05)  # the endpoint answers later, if at all
    after = responses(counting)
    assert after[400] - before.get(400, 0) == 1
    assert after.get(401, 0) == before.get(401, 0)


# The processes


def workers_of(service: Service) -> list[int]:
    found = [
        pid
        for pid in children(service.process.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found or [service.process.pid]


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_process_metrics_are_sums_over_the_workers(counting: Service) -> None:
    workers = workers_of(counting)

    def measured() -> bool:
        resident = sum(map(resident_bytes, workers))
        return 0.8 < value(counting, "process_resident_memory_bytes") / resident < 1.25

    assert comes_true(measured, 10)
    files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in workers)
    assert abs(value(counting, "process_open_fds") - files) <= 5 * len(workers)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert value(counting, "process_max_fds") == limit * len(workers)
    assert 0 < time.time() - value(counting, "process_start_time_seconds") < 600
    assert value(counting, "process_cpu_seconds_total") > 0.1 * len(workers)


def test_cpu_time_does_not_go_back_when_a_worker_dies(redis_server: RedisServer) -> None:
    name = "process_cpu_seconds_total"
    with Service("--workers", "2", **service_variables(redis_server.url)) as service:
        assert comes_true(lambda: service.log.count("startup complete") == 2, 10)
        before = value(service, name)
        os.kill(workers_of(service)[0], signal.SIGKILL)
        assert comes_true(lambda: "died: exit code -9, SIGKILL" in service.log, 10)
        assert comes_true(lambda: service.log.count("startup complete") == 3, 10)
        assert value(service, name) >= before
        assert time.time() - value(service, "process_start_time_seconds") > 0


def test_metrics_of_a_store_go_beside_those_of_the_applications_process() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(MetricsCollector(Metrics()))  # raises for a name that is there already
    names = {family.name for family in MetricsCollector(Metrics()).collect()}
    assert not any(name.startswith(("process_", "sesiones_http")) for name in names)
    assert names < {family.name for family in Exposition(Metrics()).collect()}
