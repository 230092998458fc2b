"""The service as a process: service keys, forwarded headers, command line, headers."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from sesiones.http.app import create_app
from sesiones.settings import Settings
from tests.harness import asgi
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.serving import FORM, SESSION, UnixConnection, kept_alive, listens, running


def test_without_a_key_serve_opens_post_and_put(redis_server: RedisServer) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        made = service.request("POST", "/sesiones", FORM, SESSION)
        assert made.status == 201
        updated = service.request(
            "PUT", "/sesiones", {"Content-Type": "application/json"}, made.body
        )
        assert (updated.status, updated.json()) == (200, made.json())


@pytest.mark.anyio
async def test_without_a_key_create_app_closes_post_and_put(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in fields(Settings):
        monkeypatch.delenv(f"SESIONES_{setting.name.upper()}", raising=False)
    monkeypatch.setenv("SESIONES_REDIS_URL", redis_server.url)
    app = create_app()
    for method in "POST", "PUT":
        reply = await asgi.request(app, method, "/sesiones", FORM.items(), SESSION.encode())
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == 'Bearer realm="sesiones"'


def test_old_and_new_service_key_are_both_admitted(redis_server: RedisServer) -> None:
    def posts(service: Service, *keys: str) -> list[int]:
        return [
            service.request(
                "POST", "/sesiones", FORM | {"Authorization": f"Bearer {key}"}, SESSION
            ).status
            for key in keys
        ]

    old, new, older = "o" * 32, "n" * 32, "x" * 32
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_SERVICE_KEY": f"{old}, {new}"}
    with Service(**variables) as service:
        assert posts(service, old, new, older, f"{old}, {new}") == [201, 201, 401, 401]


@pytest.mark.parametrize(
    ("trusted", "shown"),
    [
        ((), "127.0.0.1"),
        (("10.0.0.0/8, 127.0.0.0/8",), "203.0.113.9"),
        (("10.0.0.0/8",), "127.0.0.1"),
        (("*",), "203.0.113.9"),
    ],
)
def test_forwarded_headers_are_ignored_unless_allowed(
    redis_server: RedisServer, trusted: tuple[str, ...], shown: str
) -> None:
    flags = [word for address in trusted for word in ("--forwarded-allow-ips", address)]
    token = "ses_" + "A" * 45
    variables = {"SESIONES_REDIS_URL": redis_server.url, "SESIONES_ACCESS_LOG": "1"}
    with Service(*flags, **variables) as service:
        service.request(
            "DELETE",
            f"/sesiones/logout?Token_Sesion={token}",
            {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"},
        )
        assert comes_true(lambda: "DELETE" in service.log, 5)
        (line,) = [line for line in service.log.splitlines() if "DELETE" in line]
        assert f" {shown}:" in line
        assert token not in service.log


@pytest.mark.parametrize(("trusted", "shown"), [("*", "203.0.113.9:0 - "), ("127.0.0.1", " - ")])
def test_forwarded_headers_over_a_unix_socket_need_the_asterisk(
    redis_server: RedisServer, tmp_path: Path, trusted: str, shown: str
) -> None:
    path = tmp_path / "sesiones.sock"
    flags = "--uds", str(path), "--forwarded-allow-ips", trusted, "--access-log", "1"
    with running(*flags, SESIONES_REDIS_URL=redis_server.url) as (process, _):
        assert comes_true(lambda: listens(path), 10)
        connection = UnixConnection(path)
        connection.request("GET", "/nada", headers={"X-Forwarded-For": "203.0.113.9"})
        assert connection.getresponse().status == 404
        connection.close()
        assert process.stderr is not None
        line = next(line for line in process.stderr if "/nada" in line)
        assert f'{shown}"GET /nada' in line
        assert trusted == "*" or "203.0.113.9" not in line


def test_response_has_a_date_and_no_server_header(service: Service) -> None:
    connection = kept_alive(service)
    connection.connect()
    kept = connection.sock
    paths = "/sesiones/self", "/sesiones/verificar", "/nada", "/sesiones/self"
    for path in paths:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.headers.get_all("date") is not None
        assert len(response.headers.get_all("date", [])) == 1
        assert response.headers["server"] is None
        assert connection.sock is kept
    connection.close()


def test_another_uvicorn_serves_by_its_own_protocol_without_ours() -> None:
    program = (
        "import sys, uvicorn\n"
        "uvicorn.__version__ = '0.55.0'\n"
        "from sesiones.http import server\n"
        "from sesiones.settings import Settings\n"
        "print(server._config(Settings()).http)\n"
        "print({'sesiones.http.fast_check', 'sesiones.http.protocol'} & sys.modules.keys())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "httptools\nset()\n"), ended.stderr
    assert ended.stderr.startswith("uvicorn 0.55.0 is not 0.54")
