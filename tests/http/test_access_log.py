"""The access log: what a line says of a request, whichever way the request is answered."""

import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from sesiones import tokens
from tests.harness.api import FORM, JSON, SERVICE
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.stores import service_variables

Line = dict[str, Any]


@pytest.fixture(
    scope="module",
    params=[{}, {"SESIONES_CACHE_SECONDS": "60", "SESIONES_TOUCH_SECONDS": "60"}],
    ids=["plain", "cached"],
)
def logged(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Service]:
    variables = {"SESIONES_ACCESS_LOG": "1", "SESIONES_LOG_FORMAT": "json"} | request.param
    with Service(**service_variables(redis_server.url) | variables) as service:
        yield service


def lines_since(service: Service, before: str, count: int = 1) -> list[Line]:
    """The lines of the access log after what stood in the log before; so many are awaited."""

    def found() -> list[Line]:
        lines = map(orjson.loads, service.log.removeprefix(before).splitlines())
        return [line for line in lines if line["logger"] == "sesiones.access"]

    assert comes_true(lambda: len(found()) >= count, 5), service.log.removeprefix(before)
    assert len(found()) == count
    return found()


def line_of(
    service: Service,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: str | bytes | None = None,
) -> Line:
    """The line of a request, without what it has in common with every other."""
    before = service.log
    reply = service.request(method, path, headers, body)
    (line,) = lines_since(service, before)
    assert line["status"] == reply.status
    assert re.fullmatch(r"127\.0\.0\.1:\d+", line["client"])
    assert 0 <= line["seconds"] < 10
    assert (line["level"], line["method"]) == ("INFO", method)
    assert line["message"].startswith(f'{line["client"]} - "{method} {line["path"]} HTTP/1.1" ')
    common = "time", "level", "logger", "message", "status", "client", "seconds", "method"
    return {name: value for name, value in line.items() if name not in common}


def named(token: str) -> str:
    return f"ses_#{tokens.fingerprint(token)}"


def test_line_of_a_check_names_its_session(logged: Service) -> None:
    made = logged.new_session(52917)
    token = made["Token_Sesion"]
    whose = {"token": named(token), "ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
    for path in "/sesiones/self", "/sesiones/verificar", "/sesiones/verificar/a/b":
        for headers in {"x-auth-token": token}, {"Authorization": f"Bearer {token}"}:
            for _ in range(2):  # the second one from memory, where there is a cache
                assert line_of(logged, "GET", path, headers) == {"path": path} | whose


def test_line_of_a_refused_check_names_the_token(logged: Service) -> None:
    token = tokens.make(7)
    for path in "/sesiones/self", "/sesiones/verificar":
        line = line_of(logged, "GET", path, {"x-auth-token": token})
        assert line == {"path": path, "token": named(token)}
        assert line_of(logged, "GET", path, {"x-auth-token": "x"}) == {"path": path}
        assert line_of(logged, "GET", path) == {"path": path}


def test_line_of_a_login_and_an_update_names_the_session(logged: Service) -> None:
    before = logged.log
    made = logged.new_session(52917)
    (line,) = lines_since(logged, before)
    token = made["Token_Sesion"]
    whose = {"token": named(token), "ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
    assert whose.items() <= line.items()
    body = orjson.dumps(made | {"Dispositivo": "other"})
    assert (
        line_of(logged, "PUT", "/sesiones", SERVICE | JSON, body) == {"path": "/sesiones"} | whose
    )
    dead = tokens.make(52917)
    body = orjson.dumps(made | {"Token_Sesion": dead})  # a 404: only the token is known
    line = line_of(logged, "PUT", "/sesiones", SERVICE | JSON, body)
    assert line == {"path": "/sesiones", "token": named(dead)}
    line = line_of(logged, "PUT", "/sesiones", SERVICE | JSON, "{}")
    assert line == {"path": "/sesiones"}


def test_line_of_the_owners_requests_names_the_caller(logged: Service) -> None:
    made, other = (logged.new_session(52917) for _ in range(2))
    token = made["Token_Sesion"]
    caller = {"x-auth-token": token}
    assert line_of(logged, "GET", "/sesiones", caller) == {
        "path": "/sesiones",
        "token": named(token),
    }
    path = f"/sesiones/{other['ID_Sesion']}"
    assert line_of(logged, "DELETE", path, caller) == {
        "path": path,
        "token": named(token),
        "ID_Sesion": other["ID_Sesion"],
    }
    body = f"Token_Sesion={token}"
    whose = {"token": named(token), "ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
    line = line_of(logged, "DELETE", "/sesiones/logout", caller | FORM, body)
    assert line == {"path": "/sesiones/logout"} | whose


def test_line_of_the_backends_requests_names_whom_they_are_about(logged: Service) -> None:
    made = logged.new_session(52917)
    token, dead = made["Token_Sesion"], tokens.make(7)
    whose = {"token": named(token), "ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
    path = "/sesiones/introspeccion"
    line = line_of(logged, "POST", path, SERVICE | FORM, f"token={token}")
    assert line == {"path": path} | whose
    for path in "/sesiones/introspeccion", "/sesiones/revocacion":
        line = line_of(logged, "POST", path, SERVICE | FORM, f"token={dead}")
        assert line == {"path": path, "token": named(dead)}
        assert line_of(logged, "POST", path, SERVICE | FORM, "token=x") == {"path": path}
    path = "/sesiones/usuarios/52917"
    assert line_of(logged, "GET", path, SERVICE) == {"path": path, "ID_Usuario": 52917}
    numbers = {"ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
    path = f"{path}/{made['ID_Sesion']}"
    assert line_of(logged, "DELETE", path, SERVICE) == {"path": path} | numbers


def test_path_shows_no_token_however_it_is_encoded(logged: Service) -> None:
    token = tokens.make(7)
    hexadecimal = "".join(f"%{byte:02X}" for byte in token.encode())
    underscores = "%5F", "%255F", "%2%35%35F", "%2525255F"  # by gateways that encode once more
    encoded = [token.replace("_", underscore) for underscore in underscores]
    for written in token, hexadecimal, hexadecimal.replace("%", "%25"), *encoded:
        line = line_of(logged, "GET", f"/sesiones/verificar/{written}?a={written}#{written}")
        assert line == {"path": f"/sesiones/verificar/{named(token)}"}
    assert line_of(logged, "GET", "/a%20b%0A%C3%B1?secreto") == {"path": "/a%20b%0A%C3%B1"}
    assert line_of(logged, "GET", f"/{token[:20]}%{'25' * 200}41{token[21:]}") == {"path": "-"}


def test_requests_of_operators_have_no_line(logged: Service) -> None:
    before = logged.log
    for path in "/metrics", "/metrics?x", "/livez", "/readyz", "/healthz":
        for method in "GET", "HEAD":
            logged.request(method, path)
    logged.request("POST", "/metrics")
    logged.request("GET", "/metrics/x")  # no path of theirs
    (line,) = lines_since(logged, before)
    assert (line["path"], line["status"]) == ("/metrics/x", 404)


HOST = b"Host: x\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"x\r\n\r\n", {"status": 400}),
        (b"GET / HTTP/1.1\r\n\r\n", {"status": 400}),
        (b"GET / HTTP/1.1\r\n" + HOST + b"x: y\r\n" * 101 + b"\r\n", {"status": 431}),
        (
            b"POST /sesiones HTTP/1.1\r\n%bAuthorization: %b\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/json\r\n\r\nx" % (HOST, SERVICE["Authorization"].encode()),
            {"status": 400, "method": "POST", "path": "/sesiones"},
        ),
    ],
    ids=["no HTTP", "no host", "too many fields", "body"],
)
def test_malformed_request_has_a_line(logged: Service, data: bytes, expected: Line) -> None:
    before = logged.log
    with logged.connect() as connection:
        client = "{}:{}".format(*connection.getsockname())
        connection.sendall(data)
        while connection.recv(65536):
            pass
    (line,) = lines_since(logged, before)
    assert expected.items() <= line.items()
    assert line["client"] == client
    assert ("method" in line) == ("method" in expected)


def test_malformed_request_in_a_pipeline_has_a_line(logged: Service) -> None:
    before = logged.log
    check = b"GET /sesiones/self HTTP/1.1\r\n%b\r\n" % HOST
    body = b"DELETE /sesiones/logout HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\nx" % HOST
    assert logged.raw(check + body).count(b"HTTP/1.1 4") == 2
    assert [line["status"] for line in lines_since(logged, before, 2)] == [401, 400]


def test_text_form_is_a_readable_line(redis_server: RedisServer) -> None:
    with Service("--access-log", "1", **service_variables(redis_server.url)) as service:
        made = service.new_session(52917)
        service.request("GET", "/sesiones/self?x", {"x-auth-token": made["Token_Sesion"]})
        assert re.search(
            r" INFO sesiones\.access: 127\.0\.0\.1:\d+ - "
            r'"GET /sesiones/self HTTP/1\.1" 200 \d\.\d{6} s '
            rf"{named(made['Token_Sesion'])} ID_Sesion {made['ID_Sesion']} ID_Usuario 52917\n",
            service.log,
        )


def test_forwarded_address_cannot_look_like_another_part_of_the_line(
    redis_server: RedisServer,
) -> None:
    variables = {"SESIONES_ACCESS_LOG": "1", "SESIONES_FORWARDED_ALLOW_IPS": "127.0.0.1"}
    with Service(**service_variables(redis_server.url) | variables) as service:
        for address in '9.9.9.9:0 - "GET /forged HTTP/1.1" 200', "2001:db8::1", "192.0.2.7":
            service.request("GET", "/sesiones/self", {"X-Forwarded-For": address})
        assert comes_true(lambda: "192.0.2.7:0 - " in service.log, 5), service.log
        assert "[2001:db8::1]:0 - " in service.log
        assert '"GET /forged' not in service.log
