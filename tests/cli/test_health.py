"""`sesiones health`: it asks the service on this machine where the settings say that it listens."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sesiones.cli import health as health_command
from sesiones.cli import main
from sesiones.cli.exits import Exit
from tests.harness.ports import free_port
from tests.harness.service import Service, comes_true, environment

NO_REDIS = "redis://127.0.0.1:1"
KEY = "k" * 32


Health = Callable[..., tuple[int, str, str]]


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Health:
    """The exit code, standard output and standard error of the command."""

    def run(*flags: str, **variables: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patched:
            for name, text in variables.items():
                patched.setenv(name, text)
            return main(["health", *flags]), *capsys.readouterr()

    return run


@contextmanager
def serving(health: Health, **variables: str) -> Iterator[None]:
    """The service with these settings alone, from the moment on that it answers them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sesiones", "serve"],
        env=environment() | {"SESIONES_REDIS_URL": NO_REDIS} | variables,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert comes_true(lambda: health(**variables)[0] == Exit.OK, 20)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def answering(reply: bytes | None) -> Iterator[int]:
    """The port of a server that gives the reply to its first connection, or None at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                if reply is None:
                    ended.wait(20)
                else:
                    connection.sendall(reply)

        ended = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        thread.join()


def test_service_that_answers_is_alive_though_redis_is_away(health: Health) -> None:
    with Service(SESIONES_REDIS_URL=NO_REDIS) as service:
        port = str(service.port)
        told = (Exit.OK, f"127.0.0.1:{port}: alive\n", "")
        assert health(SESIONES_PORT=port) == told
        assert health("--port", port) == told
        assert health("--port", port, SESIONES_PORT="1") == told
        assert health("--port", port, "--host", "localhost")[0] == Exit.OK


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("0.0.0.0", r"127\.0\.0\.1"),
        ("0", r"127\.0\.0\.1"),
        ("::", r"\[::1\]"),
        ("::0", r"\[::1\]"),
        ("127.0.0.1", r"127\.0\.0\.1"),
        ("::1", r"\[::1\]"),
        ("localhost", r"127\.0\.0\.1|\[::1\]"),
    ],
)
def test_wildcard_addresses_are_asked_on_loopback(health: Health, host: str, asked: str) -> None:
    port = str(free_port())
    with serving(health, SESIONES_HOST=host, SESIONES_PORT=port, SESIONES_SERVICE_KEY=KEY):
        code, out, errors = health(SESIONES_HOST=host, SESIONES_PORT=port)
        assert (code, errors) == (0, "")
        assert re.fullmatch(rf"({asked}):{port}: alive\n", out)


def test_ipv6_wildcard_is_asked_by_ipv4_too(health: Health) -> None:
    with Service(SESIONES_REDIS_URL=NO_REDIS) as service:  # on 127.0.0.1 alone
        assert health("--host", "::", "--port", str(service.port))[0] == Exit.OK


def test_unix_socket_overrides_host_and_port(health: Health, tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with serving(health, SESIONES_UDS=path, SESIONES_PORT="1"):
        assert health("--uds", path)[1] == f"unix:{path}: alive\n"
    code, out, errors = health("--uds", path)
    assert (code, out, errors) == (1, "", f"sesiones: unix:{path}: No such file or directory\n")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "http://nosuch.invalid:3128"])
def test_proxies_of_the_environment_are_ignored(health: Health, proxy: str) -> None:
    with Service(SESIONES_REDIS_URL=NO_REDIS) as service:
        names = "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"
        assert health("--port", str(service.port), **dict.fromkeys(names, proxy))[0] == Exit.OK


def test_port_without_a_listener_is_not_alive(health: Health) -> None:
    port = free_port()
    code, out, errors = health("--port", str(port))
    assert (code, out, errors) == (1, "", f"sesiones: 127.0.0.1:{port}: Connection refused\n")
    code, _, errors = health("--host", "nosuch.invalid")
    assert (code, errors) == (1, "sesiones: 'nosuch.invalid': no such host\n")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "status 503 of /livez"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404 of /livez"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "status 301 of /livez"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers speaks no HTTP"),
        (b"", "Remote end closed connection without response"),
        (None, "timed out"),
    ],
)
def test_reply_other_than_a_200_is_not_alive(
    health: Health, monkeypatch: pytest.MonkeyPatch, reply: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(health_command, "TIMEOUT_SECONDS", 0.5 if reply is None else 20)
    with answering(reply) as port:
        told = health("--port", str(port))
    assert told == (Exit.NO, "", f"sesiones: 127.0.0.1:{port}: {reason}\n")


def test_port_0_is_a_usage_error(health: Health) -> None:
    code, _, errors = health("--port", "0")
    assert (code, "SESIONES_PORT" in errors) == (Exit.USAGE, True)
    assert health("--port", "x")[0] == Exit.USAGE
