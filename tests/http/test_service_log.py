"""The log of a running service: what it says of sessions, and that no token is ever in it, from
whatever place in a request."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple
from urllib.parse import quote

import orjson
import pytest
from redis import Redis

from sesiones import tokens
from sesiones.tokens import fingerprint
from tests.harness.pipes import lines_of, narrow_pipe
from tests.harness.records import index_key, session_key, write_record
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, children, comes_true, environment, serves
from tests.harness.stores import KEY, service_variables

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SERVICE = {"Authorization": f"Bearer {KEY}"} | JSON
HOST = "Host: sesiones\r\n"


class Unread(NamedTuple):
    """A service whose log is not read once it listens."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: int
    """The writing end of its pipe."""


@contextmanager
def unread(redis: RedisServer, workers: str, **variables: str) -> Iterator[Unread]:
    reading, writing = narrow_pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "sesiones", "serve", "--port", "0", "--workers", workers],
        env=environment() | {"SESIONES_REDIS_URL": redis.url} | variables,
        stderr=writing,
    )
    lines = lines_of(reading)
    with process:
        try:
            match = next(filter(None, (re.search(r"listening on .*, (\d+)\)", x) for x in lines)))
            port = int(match[1])
            assert comes_true(lambda: serves(port), 10)
            yield Unread(process, port, writing)
            process.terminate()
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
            os.close(writing)
            lines.close()


@pytest.mark.slow
def test_supervisor_whose_log_is_not_read_replaces_workers_and_their_tracker(
    redis_server: RedisServer,
) -> None:
    """Where the resource tracker of multiprocessing has died, Python warns."""
    with unread(redis_server, "2") as service:
        os.set_blocking(service.log, False)
        with suppress(BlockingIOError):
            while os.write(service.log, b"x"):
                pass
        os.set_blocking(service.log, True)
        before = set(children(service.process.pid))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert comes_true(lambda: len(set(children(service.process.pid)) - before) == 3, 10)
        assert comes_true(lambda: serves(service.port), 10)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_whose_log_is_not_read_serves_and_stops(
    redis_server: RedisServer, workers: str
) -> None:
    with unread(redis_server, workers, SESIONES_ACCESS_LOG="1") as service:
        with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)) as client:
            for _ in range(800):
                client.request("GET", f"/nada/{'x' * 8000}")
                assert client.getresponse().read()
        assert serves(service.port)
        begun = time.monotonic()
    assert time.monotonic() - begun < 4


def test_beginning_and_end_of_each_session_are_logged(redis_server: RedisServer) -> None:
    with Service(
        SESIONES_REDIS_URL=redis_server.url,
        SESIONES_LOG_FORMAT="json",
        SESIONES_MAX_PER_USER="2",
        SESIONES_REDIS_TIMEOUT="5",
    ) as service:
        made = [service.new_session(48213) for _ in range(4)]
        by_token = {sesion["Token_Sesion"]: sesion for sesion in made}
        live = [
            token
            for token in by_token
            if service.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 200
        ]
        assert len(live) == 2
        for path, ended in ("logout", live[0]), ("logoutAll", live[1]):
            caller = {"x-auth-token": live[1]}
            path = f"/sesiones/{path}?Token_Sesion={ended}"
            assert service.request("DELETE", path, caller).status == 200
        lines = [orjson.loads(line) for line in service.log.splitlines()[1:]]
    events = [line for line in lines if "event" in line]
    for line in events:
        assert (line["level"], line["logger"]) == ("INFO", "sesiones.store")
        assert line["ID_Usuario"] == 48213
        assert line["message"].startswith(f"{line['event']} session {line['ID_Sesion']} of user")
    names = {s["ID_Sesion"]: f"ses_#{fingerprint(s['Token_Sesion'])}" for s in made}
    assert all(line["token"] == names[line["ID_Sesion"]] for line in events)
    created = [line["ID_Sesion"] for line in events if line["event"] == "created"]
    assert created == [sesion["ID_Sesion"] for sesion in made]
    ended = [(line["ID_Sesion"], line["reason"]) for line in events if line["event"] == "ended"]
    dead = [s["ID_Sesion"] for token, s in by_token.items() if token not in live]
    assert sorted(ended[:2]) == [(id_, "limit") for id_ in sorted(dead)]
    assert ended[2:] == [
        (by_token[live[0]]["ID_Sesion"], "logout"),
        (by_token[live[1]]["ID_Sesion"], "logout_all"),
    ]


def test_slow_operations_are_logged(redis_server: RedisServer, redis: "Redis") -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url, SESIONES_REDIS_TIMEOUT="5") as service:
        token = service.new_session()["Token_Sesion"]
        redis.client_pause(200)
        service.request("GET", "/sesiones/self", {"x-auth-token": token})
        time.sleep(1)  # one a second is logged
        redis.client_pause(200)
        service.new_session()
        slow = re.findall(
            r"WARNING sesiones\.store: slow: (\w+) took 0\.[1-9]\d\d s\n", service.log
        )
        assert slow == ["check", "create"]


@pytest.fixture(scope="module", params=[1, 2])
def logged(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Service]:
    with Service(
        *("--access-log", "1", "--workers", str(request.param)),
        **service_variables(redis_server.url),
    ) as service:
        yield service


def send_everywhere(service: Service, token: str) -> None:
    """The token in every place of a request, good and bad."""
    request = service.request
    hexadecimal = "".join(f"%{byte:02X}" for byte in token.encode())
    for headers in (
        {"x-auth-token": token},
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"Basic {token}"},
        {"x-auth-token": token, "Authorization": f"Bearer {token}"},
        {"User-Agent": token, "Referer": f"http://x/{token}", "Cookie": f"a={token}"},
        {"Host": token, "Content-Type": token, "Upgrade": token, "Connection": "upgrade"},
        {"Expect": token, "X-Forwarded-For": token, "X-Request-ID": token},
    ):
        for path in "/sesiones/self", "/sesiones/verificar", f"/sesiones/verificar/{token}", "/":
            request("GET", path, headers)
            request("POST", path, headers, token)
    for path in (
        f"/{token}",
        f"/sesiones/{token}",
        f"/sesiones/self/{token}",
        f"/sesiones/verificar/a{token}",
        f"/sesiones/verificar/{token}{token}",
        f"/sesiones/verificar/{token}/x",
        f"/sesiones/verificar/{hexadecimal}",
        f"/sesiones/verificar/{token.replace('_', '%5F')}",
        f"/sesiones/verificar/%0A{token}%0A",
        f"/sesiones/verificar%3FToken_Sesion={token}",
    ):
        request("GET", path)
        request("GET", f"{path}?Token_Sesion={token}&{token}", {"x-auth-token": token})
        request("GET", f"{path}?{hexadecimal}#{token}", {"x-auth-token": token})
    for path in "/sesiones", "/sesiones/logout", "/sesiones/logoutAll":
        for method in "POST", "PUT", "DELETE":
            for kind, body in (
                (JSON, f'{{"Token_Sesion": "{token}"'),
                (JSON, f'{{"Token_Sesion": ["{token}"]}}'),
                (JSON, f'{{"{token}": 1, "{token}": 2}}'),
                (JSON, f'"{token}"'),
                (FORM, f"Token_Sesion={token}&Token_Sesion={token}"),
                (FORM, f"{quote(token)}=%FF"),
                ({"Content-Type": f"text/{token}"}, token),
            ):
                request(method, path, SERVICE | kind, body)
                request(method, path, {"x-auth-token": token} | kind, body)
                caller = {"x-auth-token": token}
                request(method, f"{path}?Token_Sesion={token}&{token}=%FF", caller)
    for raw in (
        token,
        f"{token} / HTTP/1.1\r\n\r\n",
        f"GET {token} HTTP/1.1\r\n\r\n",
        f"GET /{token} HTTP/{token}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{token}\r\n\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}x-auth-token: {token}\x00\r\n\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}{HOST}\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}" + f"x: {token}\r\n" * 101 + "\r\n",
        f"GET /{token} HTTP/1.1\r\n{HOST}x: {token * 400}\r\n\r\n",
        f"GET /{token} HTTP/1.0\r\n\r\n",
        f"GET http://{token}/{token}?{token} HTTP/1.1\r\n{HOST}\r\n",
        f"CONNECT {token}:1 HTTP/1.1\r\n{HOST}\r\n",
        f"POST /sesiones HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{token}",
    ):
        with service.connect() as connection:
            connection.sendall(raw.encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


def test_no_token_in_the_log(logged: Service, redis: "Redis") -> None:
    live, ended = (logged.new_session()["Token_Sesion"] for _ in range(2))
    unknown = tokens.make(7)
    before = len(logged.log)
    for token in live, ended, unknown:
        send_everywhere(logged, token)
    logged.request("DELETE", f"/sesiones/logout?Token_Sesion={ended}", {"x-auth-token": live})
    # A broken index makes a slide, a PUT and a logout fail in Redis.
    sesion = logged.request("GET", "/sesiones/self", {"x-auth-token": live}).json()
    redis.delete(index_key(7))
    redis.set(index_key(7), "x")
    write_record(redis, session_key(live), actividad=sesion["Ultima_Actividad"] - 100)
    body = str(sesion | {"Fecha_Expiracion": sesion["Fecha_Inicio"] + 600}).replace("'", '"')
    for method, path, headers in (
        ("GET", "/sesiones/self", {"x-auth-token": live}),
        ("PUT", "/sesiones", SERVICE),
        ("POST", "/sesiones", SERVICE),
        ("DELETE", "/sesiones/logoutAll", {"x-auth-token": live} | JSON),
    ):
        logged.request(method, path, headers, body)
    log = logged.log
    assert "Redis is unavailable" in log
    assert "Traceback" not in log
    for token in live, ended, unknown:
        assert token[6:] not in log
        # A request line names it by its fingerprint.
        assert re.search(
            rf'"GET /sesiones/verificar/ses_#{fingerprint(token)} HTTP/1\.1" (200|401)',
            log[before:],
        )
    assert KEY not in log
    assert "Token_Sesion=" not in re.sub(r"verificar%3FToken_Sesion%3D", "", log)


def test_bad_record_is_named_by_its_fingerprint(logged: Service, redis: "Redis") -> None:
    token = logged.new_session()["Token_Sesion"]
    before = len(logged.log)
    redis.hset(session_key(token), "1", "x")
    reply = logged.request("GET", "/sesiones/self", {"x-auth-token": token})
    assert reply.status == 401
    (line,) = [line for line in logged.log[before:].splitlines() if " ERROR " in line]
    assert f"ERROR sesiones.store: bad record of session ses_#{fingerprint(token)}: " in line
    assert token[6:] not in logged.log


def test_access_line_has_no_query(logged: Service) -> None:
    logged.request("GET", "/sesiones/self?a=secreto&b#c", {"x-auth-token": "x"})
    assert '"GET /sesiones/self HTTP/1.1" 401' in logged.log
    assert "secreto" not in logged.log


def test_without_an_access_log_no_request_is_logged(service: Service, redis: "Redis") -> None:
    token = service.new_session()["Token_Sesion"]
    before = service.log
    send_everywhere(service, token)
    assert service.log == before


# Why a token is refused


def refusals(service: Service, before: str = "") -> list[dict[str, str]]:
    lines = map(orjson.loads, service.log.removeprefix(before).splitlines())
    return [line for line in lines if line["logger"] == "sesiones.checks"]


@pytest.mark.parametrize("http", ["fast", "httptools"])
def test_debug_level_says_why_a_token_is_refused(redis_server: RedisServer, http: str) -> None:
    variables = {"SESIONES_LOG_LEVEL": "debug", "SESIONES_LOG_FORMAT": "json"}
    with Service("--http", http, **service_variables(redis_server.url) | variables) as service:
        live, ended, inactive, expired = (service.new_session(1801) for _ in range(4))
        body = orjson.dumps(inactive | {"Estado_Sesion": 0})
        assert service.request("PUT", "/sesiones", SERVICE, body).status == 200
        for sesion in live, ended:
            token = sesion["Token_Sesion"]
            assert service.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 200
        caller = {"x-auth-token": ended["Token_Sesion"]}
        path = f"/sesiones/logout?Token_Sesion={ended['Token_Sesion']}"
        assert service.request("DELETE", path, caller).status == 200
        with Redis(unix_socket_path=str(redis_server.socket)) as redis:
            redis.delete(session_key(expired["Token_Sesion"]))
        assert refusals(service) == []
        numbers = {"ID_Sesion": inactive["ID_Sesion"], "ID_Usuario": 1801}
        for sesion, reason, whose in (
            (ended, "ended", {}),
            (inactive, "inactive", numbers),
            (expired, "unknown", {}),
        ):
            token = sesion["Token_Sesion"]
            for method, asked, headers, given in (
                ("GET", "/sesiones/self", {"x-auth-token": token}, None),
                ("GET", "/sesiones/verificar/a", {"Authorization": f"Bearer {token}"}, None),
                ("GET", "/sesiones", {"x-auth-token": token}, None),
                ("DELETE", "/sesiones/logoutAll", {"x-auth-token": token}, None),
                ("POST", "/sesiones/introspeccion", SERVICE | FORM, f"token={token}"),
            ):
                before = service.log
                service.request(method, asked, headers, given)
                (line,) = refusals(service, before)
                name = f"ses_#{fingerprint(token)}"
                assert (line["level"], line["event"]) == ("DEBUG", "refused")
                assert (line["token"], line["reason"]) == (name, reason)
                assert line["message"].startswith(f"refused {name}: {reason}")
                assert {key: line[key] for key in numbers if key in line} == whose
        # The line of the ending has the same name.
        lines = map(orjson.loads, service.log.splitlines())
        (ending,) = (line for line in lines if line.get("event") == "ended")
        assert ending["token"] == f"ses_#{fingerprint(ended['Token_Sesion'])}"


def test_info_level_has_no_line_for_a_refused_token(logged: Service) -> None:
    logged.request("GET", "/sesiones/self", {"x-auth-token": tokens.make(7)})
    assert "sesiones.checks" not in logged.log


def test_debug_level_is_that_of_the_package_alone(redis_server: RedisServer) -> None:
    with Service("--log-level", "debug", **service_variables(redis_server.url)) as service:
        token = tokens.make(7)
        service.request("GET", "/sesiones/self", {"x-auth-token": token})
        (line,) = [line for line in service.log.splitlines() if " DEBUG " in line]
        assert line.endswith(f"DEBUG sesiones.checks: refused ses_#{fingerprint(token)}: unknown")
