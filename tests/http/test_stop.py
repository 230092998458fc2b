"""How the service stops: what is in flight is answered, and nothing delays the end."""

import asyncio
import http.client
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn

from sesiones.http.app import create_app
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.protocol import DRAIN_SECONDS, HttpProtocol
from sesiones.http.server import _Server
from sesiones.http.sockets import listen
from sesiones.settings import Settings
from tests.harness.api import UNKNOWN
from tests.harness.faults import hung
from tests.harness.processes import connects, is_running
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, children, comes_true
from tests.harness.serving import (
    FORM,
    SESSION,
    kept_alive,
    running,
)
from tests.harness.wire import CLOSE, CREATION, LENGTH, check, check_refusal, post

STOPS = [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)]


@contextmanager
def in_flight(service: Service, token: str) -> Iterator[list[http.client.HTTPConnection]]:
    """Checks and a POST that wait for Redis, each on a connection of its own."""
    with ExitStack() as stack:
        post, *checks = [stack.enter_context(closing(kept_alive(service))) for _ in range(9)]
        for check in checks:
            check.request("GET", "/sesiones/self", headers={"x-auth-token": token})
            time.sleep(0.005)  # not all in one batch
        post.request("POST", "/sesiones", SESSION, FORM)
        time.sleep(0.2)  # until the service has read them
        yield [*checks, post]


@pytest.mark.parametrize(("workers", "number"), STOPS)
def test_stop_answers_what_is_in_flight(
    slow_redis: RedisServer, workers: int, number: signal.Signals
) -> None:
    service = Service(
        "--workers",
        str(workers),
        SESIONES_REDIS_URL=slow_redis.url,
        SESIONES_REDIS_TIMEOUT="8",
    )
    with service, closing(kept_alive(service)) as idle:
        token = service.new_session()["Token_Sesion"]
        idle.request("GET", "/sesiones/self")
        assert idle.getresponse().read()
        pids = children(service.process.pid)
        assert len(pids) >= (workers if workers > 1 else 0)
        with hung(slow_redis), in_flight(service, token) as pending:
            service.process.send_signal(number)
            assert idle.sock.recv(1) == b""  # nothing is owed
            assert service.process.poll() is None
            slow_redis.process.send_signal(signal.SIGCONT)
            statuses = [connection.getresponse().status for connection in pending]
            assert statuses == [200] * 8 + [201]
        begun = time.monotonic()
        assert service.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 3
        # The workers are gone, and so is multiprocessing's helper, which notices a moment later.
        assert comes_true(lambda: not any(map(is_running, pids)), 3)
        assert "Traceback" not in service.log
        assert "ERROR" not in service.log


@pytest.mark.parametrize("http", ["fast", "httptools"])
def test_stop_answers_a_request_that_comes_on_an_idle_connection(
    redis_server: RedisServer, http: str
) -> None:
    """Its client cannot know yet that the service stops."""
    with (
        Service("--http", http, SESIONES_REDIS_URL=redis_server.url) as service,
        ExitStack() as stack,
    ):
        header = {"x-auth-token": service.new_session()["Token_Sesion"]}
        # Connections on which nothing was asked yet, a check, and something else.
        connections = [stack.enter_context(closing(kept_alive(service))) for _ in range(9)]
        for number, connection in enumerate(connections):
            connection.connect()
            if number % 3 == 1:
                connection.request("GET", "/sesiones/self", headers=header)
            elif number % 3 == 2:
                connection.request("POST", "/sesiones", SESSION, FORM)
            if number % 3:
                assert connection.getresponse().read()
        service.process.terminate()
        assert comes_true(lambda: not connects(service.port), 3)
        requests = [("GET", "/sesiones/self", None, header), ("POST", "/sesiones", SESSION, FORM)]
        requests.append(("GET", "/sesiones/verificar/", None, header))
        for number, connection in enumerate(connections):
            connection.request(*requests[number // 3])
            response = connection.getresponse()
            assert response.status in (200, 201)
            assert response.getheader("connection") == "close"
            assert response.read() or "verificar" in requests[number // 3][1]
        begun = time.monotonic()
        assert service.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 1  # no other client is waited for


CHECK = b"GET /sesiones/self HTTP/1.1\r\nHost: x\r\n\r\n"
NO_SETTINGS = Settings()


@asynccontextmanager
async def in_process(
    http: type[asyncio.Protocol], settings: Settings = NO_SETTINGS, grace_seconds: int | None = None
) -> AsyncIterator[tuple[_Server, socket.socket]]:
    """A server in this event loop, and its listening socket."""
    app = create_app(settings, open_without_key=True)
    config = uvicorn.Config(
        app, http=http, log_config=None, timeout_graceful_shutdown=grace_seconds
    )
    config.load()
    server = _Server(config)
    server.lifespan = config.lifespan_class(config)
    with listen(Settings(port=0)) as ((listener,), _):
        await server.startup([listener])
        yield server, listener


@pytest.mark.anyio
@pytest.mark.parametrize("http", [FastCheckProtocol, HttpProtocol])
async def test_stop_serves_a_connection_that_was_not_accepted_yet(
    http: type[asyncio.Protocol],
) -> None:
    async with in_process(http) as (server, listener):
        with ExitStack() as stack:
            address = listener.getsockname()
            # The event loop has no turn in which it could see them.
            waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(40)]
            for connection in waiting:
                connection.sendall(CHECK)
            reset = waiting.pop(20)
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.close()
            await server.shutdown([listener])
            for connection in waiting:
                assert received(connection).startswith(b"HTTP/1.1 401 ")


@pytest.mark.anyio
@pytest.mark.parametrize("http", [FastCheckProtocol, HttpProtocol])
async def test_late_event_loop_closes_no_connection_with_a_request_on_it(
    http: type[asyncio.Protocol],
) -> None:
    """Timers come before what was sent: the connection looks idle, and is not."""
    async with in_process(http) as (server, listener):
        mine, its = socket.socketpair()
        with mine, its, socket.create_connection(listener.getsockname()) as connection:

            def hold_up() -> None:
                loop.remove_reader(its)
                connection.sendall(CHECK)
                time.sleep(DRAIN_SECONDS)

            loop = asyncio.get_running_loop()
            loop.add_reader(its, hold_up)
            await asyncio.sleep(0.1)
            stopping = asyncio.create_task(server.shutdown([listener]))
            await asyncio.sleep(0.2)
            mine.send(b"x")
            await stopping
            answer = received(connection)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close\r\n" in answer


@pytest.mark.anyio
@pytest.mark.parametrize("http", [FastCheckProtocol, HttpProtocol])
async def test_stop_answers_a_503_where_redis_does_not_answer_in_time(
    http: type[asyncio.Protocol], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        settings = Settings(redis_url=url, redis_timeout=60)
        async with in_process(http, settings, grace_seconds=1) as (server, listener):
            requests = [
                check(UNKNOWN.encode()),
                check(UNKNOWN.encode(), CLOSE),
                check(UNKNOWN.encode(), line=b"GET /sesiones HTTP/1.1"),
                post(LENGTH, body=CREATION),
            ]
            connections = [
                stack.enter_context(socket.create_connection(listener.getsockname()))
                for _ in requests
            ]
            for connection, request in zip(connections, requests, strict=True):
                connection.sendall(request)
            await asyncio.sleep(0.1)
            await server.shutdown([listener])
            for connection in connections:
                check_refusal(received(connection), 503)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("workers", ["1", "2"])
def test_silent_name_server_does_not_delay_a_stop(tmp_path: Path, workers: str) -> None:
    # The C library reads this file before it asks a name server, and waits for its writer.
    aliases = tmp_path / "aliases"
    os.mkfifo(aliases)
    variables = {"SESIONES_REDIS_URL": "redis://name:6379", "HOSTALIASES": str(aliases)}
    with running("--port", "0", "--workers", workers, **variables) as (process, line):
        match = re.search(r"(\d+)\)$", line)
        assert match, line
        connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=20)
        with closing(connection):
            connection.request("GET", "/readyz")
            assert connection.getresponse().status == 503
        begun = time.monotonic()
        process.terminate()
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - begun < 4


def test_worker_that_is_terminated_is_replaced_at_once(
    redis_server: RedisServer,
) -> None:
    with Service("--workers", "2", SESIONES_REDIS_URL=redis_server.url) as service:
        assert comes_true(lambda: service.log.count("startup complete") == 2, 10)
        pid = int(re.findall(r"Started server process \[(\d+)\]", service.log)[0])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.8)  # until the parent asks whether it lives
        os.kill(pid, signal.SIGKILL)
        # uvicorn would wait for an answer for 5 s.
        assert comes_true(lambda: service.log.count("startup complete") == 3, 3.5)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stop_accepts_no_connection_while_it_answers_the_last_ones(
    slow_redis: RedisServer, workers: str
) -> None:
    """A connection that the service will not serve must be refused, so that a load balancer tries
    another node instead of waiting."""
    variables = {"SESIONES_REDIS_URL": slow_redis.url, "SESIONES_REDIS_TIMEOUT": "8"}
    with Service("--workers", workers, **variables) as service:
        token = service.new_session()["Token_Sesion"]
        with hung(slow_redis), in_flight(service, token):
            service.process.terminate()
            assert comes_true(lambda: not connects(service.port), 3)
            assert service.process.poll() is None
        assert service.process.wait(timeout=10) == 0


@pytest.mark.slow
def test_half_sent_request_does_not_delay_a_stop(redis_server: RedisServer) -> None:
    with ExitStack() as stack:
        services = [
            stack.enter_context(Service("--workers", workers, SESIONES_REDIS_URL=redis_server.url))
            for workers in ("1", "2")
        ]
        connections = []
        for service in services:
            head, body = (
                stack.enter_context(service.connect()),
                stack.enter_context(service.connect()),
            )
            head.sendall(b"GET /sesiones/self HT")
            body.sendall(
                b"POST /sesiones HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
            connections.append((head, body))
        time.sleep(0.3)
        begun = time.monotonic()
        for service in services:
            service.process.terminate()
        for service, (head, body) in zip(services, connections, strict=True):
            for connection in head, body:
                answer = received(connection)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
            assert service.process.wait(timeout=10) == 0
            assert "Traceback" not in service.log
        assert time.monotonic() - begun < 9


def received(connection: socket.socket) -> bytes:
    """What still comes, up to the end."""
    data = bytearray()
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            data += chunk
    return bytes(data)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_ctrl_c_stops_at_once(slow_redis: RedisServer, workers: str) -> None:
    variables = {"SESIONES_REDIS_URL": slow_redis.url, "SESIONES_REDIS_TIMEOUT": "8"}
    with Service("--workers", workers, **variables) as service:
        token = service.new_session()["Token_Sesion"]
        assert comes_true(lambda: service.log.count("startup complete") == int(workers), 5)
        # A terminal sends it to the whole group.
        group = [service.process.pid, *children(service.process.pid)]
        with hung(slow_redis), in_flight(service, token):
            begun = time.monotonic()
            for _ in range(2):
                for pid in group:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGINT)
                time.sleep(0.3)
            assert service.process.wait(timeout=10) == 0
            assert time.monotonic() - begun < 4
        assert comes_true(lambda: not any(map(is_running, group)), 3)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signal_just_after_the_start_is_not_lost(redis_server: RedisServer, workers: str) -> None:
    for delay in 0.0, 0.1:
        flags = ("--port", "0", "--workers", workers)
        with running(*flags, SESIONES_REDIS_URL=redis_server.url) as (process, line):
            assert "listening on" in line
            time.sleep(delay)
            pids = children(process.pid)
            process.terminate()
            assert process.wait(timeout=4) == 0
            assert comes_true(lambda pids=pids: not any(map(is_running, pids)), 3)  # type: ignore[misc]


def test_hundreds_of_idle_connections_do_not_delay_a_stop(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(service.connect())
        begun = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - begun < 3


def test_client_that_keeps_asking_does_not_delay_a_stop(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        ended = threading.Event()

        def ask() -> None:
            connection = kept_alive(service)
            with suppress(OSError, http.client.HTTPException):
                while not ended.is_set():
                    connection.request("GET", "/sesiones/self")
                    connection.getresponse().read()
            connection.close()

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.2)
        begun = time.monotonic()
        try:
            assert service.stop() == 0
        finally:
            ended.set()
            asker.join()
        assert time.monotonic() - begun < 3
