"""The soak of bad inputs sees what is wrong, when something is."""

import os
import re
import socket
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import orjson
import pytest
import uvloop

from scripts.chaos.inputs import KEY, Soak, Store, _Sockets, in_process
from scripts.chaos.mutations import Mutations
from scripts.chaos.oracle import Oracle, Violation
from sesiones.http.fast_check import FastCheckProtocol
from sesiones.http.problems import Problem, unauthorized
from sesiones.sesion import Sesion
from tests.harness.service import Reply

pytestmark = pytest.mark.slow

TOKEN, OTHER = (b"ses_eQ" + letter * 43 for letter in (b"A", b"B"))
SESION = Sesion(1, 7, TOKEN.decode(), 1, 2, 1, 1, "d")
DATE = b"date: x\r\ncache-control: no-store\r\n"
IDENTITY = b"x-id-usuario: 7\r\nx-id-sesion: 1\r\nx-fecha-expiracion: 2\r\n"
EMPTY = b"content-length: 0\r\n"


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
LET_IN = answer(b"200 OK", IDENTITY, EMPTY)
REFUSED = problem(unauthorized(presented=False), b"Unauthorized")
BODY = SESION.to_json()
OBJECT = [IDENTITY, b"content-length: %d\r\ncontent-type: application/json\r\n" % len(BODY)]
SELF = b"GET /sesiones/self HTTP/1.1"


def test_what_is_right() -> None:
    assert judge(ask(CREDENTIAL), LET_IN) == [200]
    assert judge(ask(), REFUSED) == [401]
    assert judge(ask() + ask(CREDENTIAL), REFUSED + LET_IN) == [401, 200]
    assert judge(ask(CREDENTIAL, line=SELF), answer(b"200 OK", *OBJECT, body=BODY)) == [200]
    head = SELF.replace(b"GET", b"HEAD")
    assert judge(ask(CREDENTIAL, line=head), answer(b"200 OK", *OBJECT)) == [200]
    old = ask(b"Connection: keep-alive\r\n", CREDENTIAL, line=SELF.replace(b"1.1", b"1.0"))
    kept = answer(b"200 OK", *OBJECT, b"connection: keep-alive\r\n", body=BODY)
    assert judge(old + old, kept + kept) == [200, 200]
    coded = ask(b"Transfer-Encoding: gzip, chunked\r\n")
    unknown = problem(Problem(501, "x"), b"Not Implemented", b"connection: close\r\n")
    assert judge(coded, unknown, closed=True) == [501]
    malformed = problem(Problem(400, "x"), b"Bad Request", b"connection: close\r\n")
    assert judge(b"\x00", malformed, closed=True) == [400]
    assert judge(b"\r\n", b"") == []


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
        (ask(CREDENTIAL, line=b"GET /nada HTTP/1.1"), LET_IN),
        (ask(CREDENTIAL, line=b"GET /sesiones/self HTTP/1.0"), LET_IN),
        (ask(CREDENTIAL, line=b"GET /sesiones/verificar RTSP/1.1"), LET_IN),
        (
            ask(CREDENTIAL, line=b"GET /sesiones/verificar HTTP/1.0"),
            LET_IN.replace(EMPTY, EMPTY + b"connection: keep-alive\r\n"),
        ),
        (ask(CREDENTIAL), LET_IN.replace(EMPTY, EMPTY + b"connection: keep-alive\r\n")),
        (ask(CREDENTIAL), LET_IN.replace(EMPTY, EMPTY + b"accept-encoding: identity\r\n")),
        (ask(), problem(Problem(501, "x"), b"Not Implemented", b"connection: close\r\n")),
        (ask(CREDENTIAL, line=SELF), answer(b"200 OK", *OBJECT)),
        (ask(CREDENTIAL, line=SELF), answer(b"200 OK", *OBJECT, body=BODY[:-1])),
        (
            ask(CREDENTIAL, line=SELF),
            answer(b"200 OK", *OBJECT, body=BODY.replace(TOKEN, OTHER)),
        ),
        (ask(), REFUSED.replace(b"www-authenticate", b"x-authenticate")),
        (ask(), problem(unauthorized(presented=True), b"Unauthorized")),
        (ask(), problem(Problem(500, "x"), b"Internal Server Error")),
        (ask(), problem(Problem(503, "x"), b"Service Unavailable")),
        (ask(), problem(Problem(401, TOKEN.decode()), b"Unauthorized")),
        (ask(), problem(Problem(405, "x"), b"Method Not Allowed")),
        (ask(), problem(unauthorized(presented=False), b"Unauthorized", b"connection: close\r\n")),
        (ask(), b"HTTP/1.1 100 Continue\r\n\r\n" + REFUSED),
        (ask(), b"Invalid HTTP request received."),
        (
            ask(line=b"POST /sesiones HTTP/1.1"),
            answer(b"201 Created", OBJECT[1], body=BODY),
        ),
    ],
)
def test_what_is_wrong(data: bytes, received: bytes) -> None:
    with pytest.raises(Violation):
        judge(data, received)


def soak() -> Soak:
    return uvloop.run(in_process("doctored", 2000))


def any_token(headers: Any) -> tuple[str | None, bool]:
    """The naive way to read a credential: the last one wins."""
    found = re.findall(r"ses_[A-Za-z0-9_-]{45}", str(headers))
    return (found[-1] if found else None), bool(found)


async def anyone(*arguments: Any, keys: Any = (), **_: Any) -> Any:
    record = [b"9", b"9", b"1", b"1", b"1", b"1", b"d", 2_000_000_000]
    return [*[record for _ in keys], 0]


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("what", "doctored"),
    [
        ("sesiones.http.sessions.caller_token", any_token),
        ("scripts.chaos.inputs.Store.execute", staticmethod(anyone)),
        ("sesiones.http.requests.creation", broken),
        ("sesiones.http.heads.problem", lambda *_: None),
    ],
)
def test_what_is_broken_is_seen(what: str, doctored: Any) -> None:
    with patch(what, doctored):
        assert soak().violations


def test_a_hang_is_seen() -> None:
    with (
        patch("scripts.chaos.inputs.HANG_SECONDS", 0.05),
        patch.object(FastCheckProtocol, "_answer", lambda *_: None),
    ):
        violations = soak().violations
    assert any("no answer to" in violation for violation in violations)


def test_a_hang_over_a_socket_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        body = orjson.dumps(SESION._asdict())
        silent: Any = SimpleNamespace(
            port=listener.getsockname()[1],
            process=SimpleNamespace(pid=os.getpid()),
            request=lambda *_: Reply(201, {}, body),
        )
        with patch("scripts.chaos.inputs.HANG_SECONDS", 0.1):
            violations = uvloop.run(_Sockets(silent, "silent", 40).run()).violations
    assert violations
    assert all("hangs" in violation for violation in violations)


def test_a_seed_says_it_all() -> None:
    store = Store()
    one, same, other = (
        Mutations(seed, store.tokens, store.objects, KEY.encode()) for seed in ("1", "1", "2")
    )
    made = [one.make() for _ in range(100)]
    assert made == [same.make() for _ in range(100)]
    assert made != [other.make() for _ in range(100)]
