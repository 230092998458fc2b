"""The access log: what a line says of a request, whichever way the request is answered."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest

from sesiones import tokens
from tests.harness import contract
from tests.harness.api import FORM, JSON, LOGOUTS, SERVICE
from tests.harness.faults import noreplicas
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.stores import service_variables

Line = dict[str, Any]
EVALUATE = "eval", "evalsha", "eval_ro", "evalsha_ro"
"""The commands that run a script."""


@pytest.fixture(
    scope="module",
    params=[{}, {"SESIONES_CACHE_SECONDS": "60", "SESIONES_TOUCH_SECONDS": "60"}],
    ids=["plain", "cached"],
)
def logged(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Service]:
    variables = {"SESIONES_ACCESS_LOG": "1", "SESIONES_LOG_FORMAT": "json"} | request.param
    variables["SESIONES_AT_LIMIT"] = "refuse"
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
    status: int | None = None,
) -> Line:
    """The line of a request, without what it has in common with every other. ``status``: that of
    the answer, where it matters."""
    before = service.log
    reply = service.request(method, path, headers, body)
    assert status in (None, reply.status), reply
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


OPERATIONS = [
    (method, path)
    for path, operations in contract.OPERATIONS.items()
    for method, operation in operations.items()
    if operation.credential
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_line_of_every_success_names_its_session_or_its_user_or_its_token(
    logged: Service, method: str, path: str
) -> None:
    operation = contract.OPERATIONS[path][method]
    made = logged.new_session(52917)
    token = made["Token_Sesion"]
    numbers = {"ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
    whose = {"token": named(token)} | numbers
    if operation.credential == "token":
        headers = {"x-auth-token": token}
        path = path.replace("{ID_Sesion}", str(logged.new_session(52917)["ID_Sesion"]))
    else:
        headers = SERVICE
        in_path = {name: numbers[name] for name in numbers if f"{{{name}}}" in path}
        whose = in_path or whose
        path = path.format(**numbers)
    fields = made | {"token": token, "Dispositivo": "other"}
    body = urlencode({name: fields[name] for name in operation.body})
    line = line_of(logged, method, path, headers | (FORM if body else {}), body, operation.success)
    if operation is contract.CREATE:
        assert line.pop("ID_Sesion") not in (made["ID_Sesion"], None)
        assert line.pop("token") not in (named(token), None)
        whose = {"ID_Usuario": 52917}
    elif path == "/sesiones/revocacion":  # whether there was a session is not told
        whose = {"token": named(token)}
    assert line == {"path": path} | whose


@pytest.mark.parametrize(
    ("method", "path", "scripts"),
    [
        ("GET", "/sesiones", 2),
        ("DELETE", "/sesiones/1", 2),
        ("DELETE", "/sesiones/logoutOthers", 2),
        ("POST", "/sesiones/revocacion", 1),
    ],
)
def test_line_costs_no_call_of_redis(
    logged: Service, redis_server: RedisServer, method: str, path: str, scripts: int
) -> None:
    def calls() -> int:
        with redis_server.client() as redis:
            statistics: dict[str, Line] = redis.info("commandstats")
        return sum(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in EVALUATE)

    def made() -> tuple[dict[str, str], str]:
        token = logged.new_session(52917)["Token_Sesion"]
        return (
            ({"x-auth-token": token}, "")
            if method != "POST"
            else (SERVICE | FORM, f"token={token}")
        )

    line_of(logged, method, path, *made())  # loads the scripts
    request = made()
    before = calls()
    line_of(logged, method, path, *request, 200)
    assert calls() - before == scripts


@pytest.mark.parametrize("path", LOGOUTS)
def test_line_of_a_refused_logout_names_the_caller(logged: Service, path: str) -> None:
    made, another_users = logged.new_session(52917), logged.new_session(7)
    token = made["Token_Sesion"]
    caller = {"x-auth-token": token}
    whose = {"token": named(token), "ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
    refused: list[tuple[int, dict[str, str], str]] = [
        (415, {"Content-Type": "text/plain"}, "x"),
        (413, FORM, "x" * 20_000),
        (400, JSON, "{"),
        (422, FORM, "x=y"),
        (403, FORM, f"Token_Sesion={another_users['Token_Sesion']}"),
    ]
    for status, headers, body in refused:
        line = line_of(logged, "DELETE", path, caller | headers, body, status)
        assert line == {"path": path} | whose


def test_line_of_a_refused_login_names_the_user(logged: Service) -> None:
    token = logged.new_session(52917)["Token_Sesion"]
    headers = SERVICE | FORM | {"x-auth-token": token}  # which a POST ignores
    body = "ID_Usuario=52917&Dispositivo=d&Max_Sesiones=1"
    line = line_of(logged, "POST", "/sesiones", headers, body, 409)
    assert line == {"path": "/sesiones", "ID_Usuario": 52917}
    body = "ID_Usuario=52917"  # a body that is not valid names no user
    assert line_of(logged, "POST", "/sesiones", SERVICE | FORM, body, 422) == {"path": "/sesiones"}


@pytest.mark.parametrize(
    ("changes", "status", "known"),
    [
        ({"Fecha_Expiracion": 2**53 - 1}, 422, ["ID_Sesion", "ID_Usuario"]),
        ({"Fecha_Inicio": 0}, 409, ["ID_Sesion", "ID_Usuario"]),
        ({"ID_Sesion": 1}, 409, ["ID_Usuario"]),
        ({"ID_Usuario": 7}, 409, ["ID_Sesion"]),
        ({"ID_Sesion": 1, "ID_Usuario": 7}, 409, []),
    ],
)
def test_line_of_a_refused_update_has_the_numbers_of_the_session_alone(
    logged: Service, changes: Line, status: int, known: list[str]
) -> None:
    made = logged.new_session(52917)
    body = orjson.dumps(made | changes)
    line = line_of(logged, "PUT", "/sesiones", SERVICE | JSON, body, status)
    token = named(made["Token_Sesion"])
    assert line == {"path": "/sesiones", "token": token} | {name: made[name] for name in known}


def test_line_of_a_request_that_redis_fails_names_whom_it_is_about() -> None:
    variables = {"SESIONES_ACCESS_LOG": "1", "SESIONES_LOG_FORMAT": "json"}
    with RedisServer() as server, Service(**service_variables(server.url) | variables) as service:
        made = service.new_session(52917)
        token = made["Token_Sesion"]
        whose = {"token": named(token), "ID_Sesion": made["ID_Sesion"], "ID_Usuario": 52917}
        caller = {"x-auth-token": token}
        logout = caller | FORM, f"Token_Sesion={token}"
        requests: list[tuple[str, str, dict[str, str], str, Line]] = [
            ("DELETE", "/sesiones/logoutOthers", caller, "", whose),
            ("DELETE", "/sesiones/1", caller, "", whose),
            *(("DELETE", path, *logout, whose) for path in LOGOUTS),
            ("POST", "/sesiones", SERVICE | FORM, "ID_Usuario=0&Dispositivo=d", {"ID_Usuario": 0}),
            ("PUT", "/sesiones", SERVICE | FORM, urlencode(made), {"token": named(token)}),
            ("DELETE", "/sesiones/usuarios/8", SERVICE, "", {"ID_Usuario": 8}),
        ]
        with noreplicas(server):  # checks go on
            for method, path, headers, body, names in requests:
                line = line_of(service, method, path, headers, body, 503)
                assert line == {"path": path} | names


def test_line_of_the_backends_requests_names_whom_they_are_about(logged: Service) -> None:
    dead = tokens.make(7)
    for path in "/sesiones/introspeccion", "/sesiones/revocacion":
        line = line_of(logged, "POST", path, SERVICE | FORM, f"token={dead}")
        assert line == {"path": path, "token": named(dead)}
        assert line_of(logged, "POST", path, SERVICE | FORM, "token=x") == {"path": path}


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
