"""scripts/locustfile.py against the service behind a proxy that makes its answers wrong."""

import csv
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.harness.ports import free_port
from tests.harness.service import Service
from tests.harness.stores import KEY


class WrongServer(BaseHTTPRequestHandler):
    """Passes requests on, and now and then does wrong: acknowledges a logout that it does not
    carry out, shows another user, a date that ran backwards, refuses or lets in who it should
    not."""

    protocol_version = "HTTP/1.1"
    service: Service
    count = 0

    def answer(self) -> None:
        cls = type(self)
        cls.count += 1
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.command == "DELETE":
            self.reply(200, {}, b'{"Sesiones_Eliminadas":1}')
            return
        reply = cls.service.request(self.command, self.path, dict(self.headers), body)
        status, content, headers = reply.status, reply.body, reply.headers
        if self.command == "GET" and status == 401:
            status, content, headers = 200, b"", {"x-id-usuario": "7"}
        elif self.command == "GET" and cls.count % 9 == 0:
            status, content, headers = 401, b"", {}
        elif self.path == "/sesiones/self" and cls.count % 9 == 3:
            session = json.loads(content)
            content = json.dumps(session | {"ID_Usuario": 7}).encode()
        elif self.path == "/sesiones/self" and cls.count % 9 == 6:
            session = json.loads(content)
            content = json.dumps(session | {"Fecha_Expiracion": 1}).encode()
        self.reply(status, headers, content)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.startswith("x-"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Proxy(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left in the middle."""


@contextmanager
def proxy(service: Service) -> Iterator[str]:
    WrongServer.service = service
    with Proxy(("127.0.0.1", 0), WrongServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def locust(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "locust", "-f", "scripts/locustfile.py", *options],
        env=variables,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.slow
def test_wrong_answers_are_failures_in_the_report(
    service: Service, seeded: Path, tmp_path: Path
) -> None:
    with proxy(service) as url:
        run = "--headless", "-u", "40", "-r", "40", "-t", "5s", "--user-rate", "10"
        files = "--tokens", str(seeded), "--csv", str(tmp_path / "locust")
        key = tmp_path / "key"
        key.write_text(KEY)
        ended = locust("--host", url, *run, *files, SESIONES_SERVICE_KEY_FILE=str(key))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    with (tmp_path / "locust_failures.csv").open() as file:
        failures = [line["Error"] for line in csv.DictReader(file)]
    for wrong in (
        "200 after an acknowledged logout",
        "401 for a live session",
        "another user's ID_Usuario",
        "Fecha_Expiracion ran backwards",
        "200 for a guessed token",
    ):
        assert any(wrong in failure for failure in failures), failures
        assert wrong in ended.stderr
    assert "ses_" not in ended.stdout + ended.stderr


@pytest.mark.slow
def test_service_that_is_gone_gives_no_reply_to_any_request(seeded: Path, tmp_path: Path) -> None:
    run = "--headless", "-u", "40", "-r", "40", "-t", "3s", "--user-rate", "10"
    files = "--tokens", str(seeded), "--csv", str(tmp_path / "locust")
    ended = locust("--host", "http://127.0.0.1:1", *run, *files)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    with (tmp_path / "locust_failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    assert {failure["Method"] for failure in failures} == {"GET", "POST"}
    assert all("no reply" in failure["Error"] for failure in failures), failures


def test_without_a_token_file_it_names_the_seeder(tmp_path: Path) -> None:
    ended = locust("--headless", "-t", "1s", "--tokens", str(tmp_path / "none"))
    assert ended.returncode == 1
    assert "see python -m scripts.seed" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_file_without_tokens_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "tokens"
    empty.touch(0o600)
    ended = locust("--headless", "-t", "1s", "--tokens", str(empty))
    assert ended.returncode == 1
    assert "there are no tokens" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_bad_service_key_is_one_line(seeded: Path) -> None:
    run = "--headless", "-t", "1s", "--tokens", str(seeded)
    ended = locust(*run, SESIONES_SERVICE_KEY="short")
    assert ended.returncode == 1
    assert "locustfile: SESIONES_SERVICE_KEY" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_web_ui_shows_the_kinds_of_users(seeded: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "locust", "-f", "scripts/locustfile.py", "--class-picker"),
            *("--web-host", "127.0.0.1", "--web-port", str(port), "--tokens", str(seeded)),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "web interface" not in (line := process.stderr.readline()):
            assert line, "it ended"
        for _ in range(100):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", "/")
                page = connection.getresponse().read().decode()
                break
            except ConnectionRefusedError:
                threading.Event().wait(0.05)
            finally:
                connection.close()
        for name in "SteadyChecks", "DailyMix", "LoginStorm", "LogoutAllStorm", "Attacker":
            assert name in page
    finally:
        process.terminate()
        process.communicate(timeout=10)
