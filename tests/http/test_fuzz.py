"""Whatever comes in, only answers of the contract go out; and the fuzzer sees every flaw.

SESIONES_TEST_EXAMPLES sets for how long.
"""

import re
import socket
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import orjson
import pytest
import uvloop

from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.problems import Problem, unauthorized
from sesiones.http.responses import _IDENTITY
from sesiones.http.routes import Routes
from sesiones.sesion import Sesion, UserSession
from tests.harness.fuzzer import fuzz_in_process, fuzz_over_sockets
from tests.harness.in_process import FixedStore
from tests.harness.mutations import Mutations
from tests.harness.oracle import Oracle, Violation
from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply, Service
from tests.harness.stores import EXAMPLES, KEY


def test_answers_in_process_are_those_of_the_contract(redis_server: RedisServer) -> None:
    found = uvloop.run(fuzz_in_process("suite", 160 * EXAMPLES, redis_url=redis_server.url))
    assert found.violations == []


def test_answers_over_sockets_are_those_of_the_contract(service: Service) -> None:
    found = fuzz_over_sockets(service, "suite", 16 * EXAMPLES)
    assert found.violations == []


def test_same_seed_makes_the_same_inputs() -> None:
    store = FixedStore()
    one, same, other = (
        Mutations(seed, store.tokens, store.objects, KEY.encode()) for seed in ("1", "1", "2")
    )
    made = [one.make() for _ in range(100)]
    assert made == [same.make() for _ in range(100)]
    assert made != [other.make() for _ in range(100)]


# The oracle

TOKEN, OTHER = (b"ses_eQ" + letter * 43 for letter in (b"A", b"B"))
SESION = Sesion(1, 7, TOKEN.decode(), 1, 2, 1, 1, "d")
DATE = b"date: x\r\ncache-control: no-store\r\n"
IDENTITY = b"x-id-usuario: 7\r\nx-id-sesion: 1\r\nx-fecha-expiracion: 2\r\n"
EMPTY = b"content-length: 0\r\n"
CLOSE = b"connection: close\r\n"


def judge(data: bytes, received: bytes, *, closed: bool = False) -> list[int]:
    return Oracle({1: (TOKEN, 7)}, KEY.encode()).check(data, received, closed=closed)


def ask(*fields: bytes, line: bytes = b"GET /sesiones/verificar HTTP/1.1") -> bytes:
    return b"%b\r\nHost: h\r\n%b\r\n" % (line, b"".join(fields))


def answer(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%b%b\r\n%b" % (line, DATE, b"".join(fields), body)


def problem(problem: Problem, phrase: bytes, *fields: bytes) -> bytes:
    response = problem.response()
    body = bytes(response.body)
    own = [b"%b: %b\r\n" % pair for pair in response.raw_headers if pair[0] != b"cache-control"]
    return answer(b"%d %b" % (problem.status, phrase), *own, *fields, body=body)


CREDENTIAL = b"x-auth-token: %b\r\n" % TOKEN
SERVICE_KEY = b"Authorization: Bearer %b\r\n" % KEY.encode()
LET_IN = answer(b"200 OK", IDENTITY, EMPTY)
REFUSED = problem(unauthorized(presented=False), b"Unauthorized")
BODY = SESION.to_json()
JSON = b"content-length: %d\r\ncontent-type: application/json\r\n" % len(BODY)
OBJECT = answer(b"200 OK", IDENTITY, JSON, body=BODY)
SELF = b"GET /sesiones/self HTTP/1.1"
PUT = ask(SERVICE_KEY, b"Content-Length: %d\r\n" % len(BODY), line=b"PUT /sesiones HTTP/1.1") + BODY
MALFORMED = problem(Problem(400, "x"), b"Bad Request", CLOSE)


@pytest.mark.parametrize(
    ("data", "received", "statuses"),
    [
        (ask(CREDENTIAL), LET_IN, [200]),
        (ask(), REFUSED, [401]),
        (ask() + ask(CREDENTIAL), REFUSED + LET_IN, [401, 200]),
        (ask(CREDENTIAL, line=SELF), OBJECT, [200]),
        (ask(CREDENTIAL, line=SELF.replace(b"GET", b"HEAD")), OBJECT.removesuffix(BODY), [200]),
        (
            ask(b"Connection: keep-alive\r\n", CREDENTIAL, line=SELF.replace(b"1.1", b"1.0")) * 2,
            answer(b"200 OK", IDENTITY, JSON, b"connection: keep-alive\r\n", body=BODY) * 2,
            [200, 200],
        ),
        (
            ask(b"Transfer-Encoding: gzip, chunked\r\n"),
            problem(Problem(501, "x"), b"Not Implemented", CLOSE),
            [501],
        ),
        (b"\x00", MALFORMED, [400]),
        (b"\r\n", b"", []),
        (PUT, answer(b"200 OK", JSON, body=BODY), [200]),
    ],
)
def test_oracle_accepts_what_the_contract_allows(
    data: bytes, received: bytes, statuses: list[int]
) -> None:
    assert judge(data, received, closed=CLOSE in received) == statuses


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (ask(), LET_IN),
        (ask(b"x-auth-token: %b\r\n" % OTHER), LET_IN),
        (ask(CREDENTIAL, CREDENTIAL), LET_IN),
        (ask(b"Cookie: %b\r\n" % TOKEN), LET_IN),
        (ask(line=b"GET /sesiones/verificar?x-auth-token:%b HTTP/1.1" % TOKEN), LET_IN),
        (ask() + CREDENTIAL, LET_IN),
        (ask(CREDENTIAL), LET_IN.replace(b"usuario: 7", b"usuario: 8")),
        (ask(CREDENTIAL), LET_IN.replace(b"x-id-sesion: 1\r\n", b"")),
        (ask(CREDENTIAL), LET_IN.replace(b"no-store", b"private")),
        (ask(CREDENTIAL), LET_IN.replace(b"200 OK", b"204 No Content")),
        (ask(CREDENTIAL), LET_IN + LET_IN + LET_IN),
        (ask(CREDENTIAL), LET_IN[:-1]),
        (ask(CREDENTIAL), LET_IN.replace(EMPTY, b"content-length: 2\r\n") + b"{}"),
        (ask(CREDENTIAL), OBJECT),
        (ask(CREDENTIAL, line=SELF), LET_IN),
        (ask(CREDENTIAL, line=b"GET /nada HTTP/1.1"), LET_IN),
        (ask(CREDENTIAL, line=b"GET /sesiones/self HTTP/1.0"), OBJECT),
        (ask(CREDENTIAL, line=b"GET /sesiones/verificar RTSP/1.1"), LET_IN),
        (
            ask(CREDENTIAL, line=b"GET /sesiones/verificar HTTP/1.0"),
            LET_IN.replace(EMPTY, EMPTY + b"connection: keep-alive\r\n"),
        ),
        (ask(CREDENTIAL), LET_IN.replace(EMPTY, EMPTY + b"connection: keep-alive\r\n")),
        (ask(CREDENTIAL), LET_IN.replace(EMPTY, EMPTY + b"accept-encoding: identity\r\n")),
        (ask(), problem(Problem(501, "x"), b"Not Implemented", CLOSE)),
        (ask(CREDENTIAL, line=SELF), answer(b"200 OK", IDENTITY, JSON)),
        (ask(CREDENTIAL, line=SELF), OBJECT[:-1]),
        (ask(CREDENTIAL, line=SELF), OBJECT.replace(TOKEN, OTHER)),
        (ask(CREDENTIAL, line=SELF), OBJECT.replace(b'"ID_Usuario":7', b'"ID_Usuario":8')),
        (ask(), REFUSED.replace(b"www-authenticate", b"x-authenticate")),
        (ask(), problem(unauthorized(presented=True), b"Unauthorized")),
        (ask(), problem(Problem(500, "x"), b"Internal Server Error")),
        (ask(), problem(Problem(503, "x"), b"Service Unavailable")),
        (ask(), problem(Problem(401, TOKEN.decode()), b"Unauthorized")),
        (ask(), problem(Problem(405, "x"), b"Method Not Allowed")),
        (ask(), problem(unauthorized(presented=False), b"Unauthorized", CLOSE)),
        (ask(), b"HTTP/1.1 100 Continue\r\n\r\n" + REFUSED),
        (ask(), b"Invalid HTTP request received."),
        (ask(), MALFORMED),  # the request is well-formed
        (ask(), b""),
        (ask(line=b"POST /sesiones HTTP/1.1"), answer(b"201 Created", JSON, body=BODY)),
        (PUT, answer(b"200 OK", IDENTITY, JSON, body=BODY)),
        (PUT.replace(KEY.encode(), b""), answer(b"200 OK", JSON, body=BODY)),
        (PUT, answer(b"200 OK", JSON, body=BODY.replace(TOKEN, OTHER))),
        (PUT, answer(b"200 OK", JSON, body=BODY[:-1] + b" ")),
    ],
)
def test_oracle_refuses_what_the_contract_does_not_allow(data: bytes, received: bytes) -> None:
    with pytest.raises(Violation):
        judge(data, received, closed=received == MALFORMED)


# Flaws of the service


def last_token(headers: Any) -> tuple[str | None, bool]:
    """The naive way to read a credential: the last one wins."""
    found = re.findall(r"ses_[A-Za-z0-9_-]{45}", str(headers))
    return (found[-1] if found else None), bool(found)


def ascii_token(headers: Any) -> tuple[str | None, bool]:
    for name, value in headers:
        if name == b"x-auth-token":
            value.decode("ascii")
    return None, False


async def session_of_any_token(*arguments: Any, keys: Any = (), **_: Any) -> Any:
    record = [b"1800000000 0 1800 1 9 9:d", 2_000_000_000]
    return [arguments[-1], [*(record * len(keys)), 0, 0, []]]


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")


def not_found_for_a_method(routes: Routes, path: str, method: str) -> Any:
    if found := routes.endpoints.get(path, {}).get(method):
        return found, {}
    raise Problem(404, "x")


@pytest.mark.parametrize(
    ("target", "flaw"),
    [
        pytest.param(target, flaw, id=name)
        for name, target, flaw in [
            ("last token wins", "sesiones.http.authentication.caller_token", last_token),
            ("token must be ASCII", "sesiones.http.authentication.caller_token", ascii_token),
            (
                "any token is a session's",
                "tests.harness.in_process.FixedStore.execute",
                staticmethod(session_of_any_token),
            ),
            ("creation fails", "sesiones.http.requests.creation", broken),
            ("heads are not checked", "sesiones.http.heads.problem", lambda *_: None),
            (
                "members in another order",
                "sesiones.sesion.Sesion.to_json",
                lambda sesion: orjson.dumps(dict(reversed(sesion._asdict().items()))),
            ),
            (
                "verificar has a body",
                "sesiones.http.responses._VERIFIED",
                _IDENTITY + b"content-length: 2\r\n%b\r\n{}",
            ),
            (
                "surrogates in a device",
                "sesiones.sesion._FORBIDDEN_IN_DEVICE",
                re.compile(r"[\x00-\x1f\x7f-\x9f]"),
            ),
            ("JSON that fails", "sesiones.http.requests._no_constant", broken),
            (
                "a query that fails",
                "sesiones.http.requests.parse_form",
                lambda text, *_: dict(pair.split("=") for pair in text.decode().split("&") if pair),
            ),
            ("paths are decoded", "sesiones.http.routes.raw_path", lambda scope: scope["path"]),
            (
                "a slash at the end",
                "sesiones.http.routes.raw_path",
                lambda scope: scope["path"].rstrip("/"),
            ),
            ("404 for a 405", "sesiones.http.routes.Routes._find", not_found_for_a_method),
            ("a list with more", "sesiones.sesion.UserSession.to_dict", UserSession._asdict),
            (
                "numbers in paths without bounds",
                "sesiones.http.routes.BOUNDS",
                {"ID_Sesion": (0, 10**16), "ID_Usuario": (0, 10**16)},
            ),
            ("no reasons of dates", "sesiones.http.sessions.BAD_DATES", {}),
        ]
    ],
)
def test_fuzzer_finds_a_flaw_of_the_service(target: str, flaw: Any) -> None:
    with patch(target, flaw), patch("tests.harness.fuzzer.VIOLATIONS_MAX", 1):
        assert uvloop.run(fuzz_in_process("flaw", 50_000)).violations


def test_fuzzer_finds_a_hang() -> None:
    with (
        patch("tests.harness.fuzzer.HANG_SECONDS", 0.05),
        patch.object(FastCheckProtocol, "_answer", lambda *_: None),
    ):
        violations = uvloop.run(fuzz_in_process("flaw", 2000)).violations
    assert any("no answer" in violation for violation in violations)


def test_fuzzer_finds_a_hang_over_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        created = Reply(201, {}, orjson.dumps(SESION._asdict()))
        silent: Any = SimpleNamespace(
            log="",
            request=lambda *_: created,
            connect=lambda: socket.create_connection(listener.getsockname()),
        )
        with patch("tests.harness.fuzzer.HANG_SECONDS", 0.1):
            violations = fuzz_over_sockets(silent, "silent", 40).violations
    assert violations
    assert all("hangs" in violation for violation in violations)
