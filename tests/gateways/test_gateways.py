"""Every gateway, on the files of docs/gateways. A test's docstring is its row in the table of
docs/gateways/README.md.

In every test the application may receive only requests of live sessions, each with the identity
of its session and no other header that reads as an identity. served() and refused() check that, and
test_table.py, which runs last, that no request arrived without an identity.
"""

import hashlib
import http.client
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from urllib.parse import unquote

import orjson
import pytest

from scripts.gateways import Gateway, RunningGateway
from tests.gateways.client import exchange, load, raw
from tests.gateways.conftest import IDENTITY, SPOOFED, Arrived, Backend, Stand
from tests.harness.service import Reply, Service, comes_true

OUTAGE_SECONDS = 3.0
"""A client gets its 503 within this time: the gateway asks two nodes, each for about a second."""

RECOVERY_SECONDS = 5.0
CLIENTS = 16


def token(session: dict[str, Any]) -> list[tuple[str, str]]:
    return [("x-auth-token", session["Token_Sesion"])]


def served(stand: Stand, reply: Reply, session: dict[str, Any]) -> Arrived:
    """The one request that reached the application, with the session's identity."""
    assert (reply.status, reply.body) in ((200, b"hello"), (200, b"")), stand.running.log
    (arrived,) = stand.arrived
    stand.arrived.clear()
    identity = dict(arrived.identity())
    expires = int(identity.pop("x-fecha-expiracion"))
    assert len(arrived.identity()) == len(IDENTITY)
    assert identity == {
        "x-id-usuario": str(session["ID_Usuario"]),
        "x-id-sesion": str(session["ID_Sesion"]),
    }
    assert session["Fecha_Expiracion"] <= expires <= time.time() + 1801
    return arrived


def refused(stand: Stand, reply: Reply, status: int = 401) -> None:
    assert reply.status == status, stand.running.log
    assert not stand.arrived


def unavailable(stand: Stand, begun: float, reply: Reply) -> None:
    refused(stand, reply, 503)
    assert time.monotonic() - begun < OUTAGE_SECONDS
    assert reply.headers["retry-after"] == "1"


def recovers(stand: Stand, session: dict[str, Any]) -> None:
    stand.arrived.clear()
    deadline = time.monotonic() + RECOVERY_SECONDS
    while (reply := stand.ask(token(session))).status != 200:
        assert time.monotonic() < deadline, reply
        refused(stand, reply, 503)
        time.sleep(0.05)
    served(stand, reply, session)


@pytest.fixture
def session(backend: Backend) -> dict[str, Any]:
    return backend.new_session()


# Who passes


def test_x_auth_token(stand: Stand, session: dict[str, Any]) -> None:
    """a live session passes, with `x-auth-token`"""
    served(stand, stand.ask(token(session)), session)


def test_bearer(stand: Stand, session: dict[str, Any]) -> None:
    """a live session passes, with `Authorization: Bearer`"""
    headers = [("Authorization", f"Bearer {session['Token_Sesion']}")]
    served(stand, stand.ask(headers), session)


def put(backend: Backend, session: dict[str, Any], **fields: int) -> None:
    body = orjson.dumps(session | fields)
    changed = backend.ask_node("PUT", "/sesiones", {"Content-Type": "application/json"}, body)
    assert changed.status == 200, changed


def missing(_: Backend, __: dict[str, Any]) -> list[tuple[str, str]]:
    return []


def malformed(_: Backend, session: dict[str, Any]) -> list[tuple[str, str]]:
    return [("x-auth-token", session["Token_Sesion"] + "A")]


def unknown(_: Backend, session: dict[str, Any]) -> list[tuple[str, str]]:
    return [("x-auth-token", "ses_" + "A" * 45)]


def expired(backend: Backend, session: dict[str, Any]) -> list[tuple[str, str]]:
    put(backend, session, Fecha_Expiracion=session["Ultima_Actividad"] + 1)
    time.sleep(1.1)
    return token(session)


def closed(backend: Backend, session: dict[str, Any]) -> list[tuple[str, str]]:
    target = f"/sesiones/logout?Token_Sesion={session['Token_Sesion']}"
    assert backend.ask_node("DELETE", target, dict(token(session))).status == 200
    return token(session)


def inactive(backend: Backend, session: dict[str, Any]) -> list[tuple[str, str]]:
    put(backend, session, Estado_Sesion=0)
    return token(session)


def two_tokens(_: Backend, session: dict[str, Any]) -> list[tuple[str, str]]:
    return token(session) * 2


def two_headers(_: Backend, session: dict[str, Any]) -> list[tuple[str, str]]:
    return [*token(session), ("Authorization", f"Bearer {session['Token_Sesion']}")]


@pytest.mark.parametrize(
    "credentials",
    [missing, malformed, unknown, expired, closed, inactive, two_tokens, two_headers],
)
def test_no_live_session(
    stand: Stand,
    session: dict[str, Any],
    credentials: Callable[[Backend, dict[str, Any]], list[tuple[str, str]]],
) -> None:
    """401 when the token is missing, malformed, unknown, expired, closed, inactive, or two"""
    headers = credentials(stand.backend, session)
    refused(stand, stand.ask(headers))
    spoofed = [(name, SPOOFED) for name in IDENTITY]
    refused(stand, stand.ask([*headers, *spoofed]))


def test_401_challenge(stand: Stand, session: dict[str, Any]) -> None:
    """the 401 carries the service's `WWW-Authenticate`"""
    for headers in ([], malformed(stand.backend, session)):
        direct = stand.backend.ask_node("GET", "/sesiones/verificar", dict(headers))
        reply = stand.ask(headers)
        refused(stand, reply)
        assert reply.headers["www-authenticate"] == direct.headers["www-authenticate"]


def test_401_body(stand: Stand) -> None:
    """the 401 carries the service's body"""
    direct = stand.backend.ask_node("GET", "/sesiones/verificar", {})
    reply = stand.ask()
    refused(stand, reply)
    assert reply.body == direct.body
    assert reply.headers["content-type"] == direct.headers["content-type"]
    assert reply.headers["cache-control"] == "no-store"


def test_logout(stand: Stand, session: dict[str, Any]) -> None:
    """a logout is seen by the next request on the same connection"""
    connection = http.client.HTTPConnection("127.0.0.1", stand.port, timeout=10)
    try:
        for _ in range(20):
            session = stand.backend.new_session()
            served(stand, exchange(connection, token(session)), session)
            closed(stand.backend, session)
            refused(stand, exchange(connection, token(session)))
    finally:
        connection.close()


# What reaches the application


@pytest.mark.parametrize("value", [SPOOFED, ""])
@pytest.mark.parametrize(
    "spelling",
    [
        str.title,
        str.upper,
        str.lower,
        lambda name: name.replace("-", "_"),
        lambda name: name.replace("-", "_", 1),
        lambda name: "_".join(name.rsplit("-", 1)),
    ],
    ids=["title", "upper", "lower", "underscores", "first_underscore", "last_underscore"],
)
def test_spoofed_identity(
    stand: Stand, session: dict[str, Any], spelling: Callable[[str], str], value: str
) -> None:
    """identity headers of the client's own never arrive: any case, repeated, with underscores"""
    spoofed = [(spelling(name), value) for name in IDENTITY] * 2
    served(stand, stand.ask([*spoofed, *token(session)]), session)
    served(stand, stand.ask([*token(session), *spoofed]), session)


@pytest.mark.parametrize("name", IDENTITY)
def test_connection_header(stand: Stand, session: dict[str, Any], name: str) -> None:
    """`Connection: x-id-usuario` does not take the identity away"""
    headers = [*token(session), ("Connection", f"keep-alive, {name}")]
    served(stand, stand.ask(headers), session)


@pytest.mark.parametrize("name", ["x-auth-token", "authorization"])
def test_connection_header_of_the_token(stand: Stand, session: dict[str, Any], name: str) -> None:
    """a token that `Connection` lists is not lost on the way to the check, or it is a 401"""
    value = {"x-auth-token": "", "authorization": "Bearer "}[name] + session["Token_Sesion"]
    reply = stand.ask([(name, value), ("Connection", f"keep-alive, {name}")])
    if reply.status == 200:
        served(stand, reply, session)
    else:
        refused(stand, reply)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods(stand: Stand, session: dict[str, Any], method: str) -> None:
    """GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS arrive as they are"""
    assert served(stand, stand.ask(token(session), method), session).method == method
    refused(stand, stand.ask(method=method))


MEBIBYTE = os.urandom(1024) * 1024


def in_chunks() -> Iterable[bytes]:
    return (MEBIBYTE[start : start + 65536] for start in range(0, len(MEBIBYTE), 65536))


def test_large_body(stand: Stand, session: dict[str, Any]) -> None:
    """a POST of 1 MiB arrives whole"""
    arrives_whole(stand, session, lambda: MEBIBYTE)


def test_chunked_body(stand: Stand, session: dict[str, Any]) -> None:
    """so does one in chunks"""
    arrives_whole(stand, session, in_chunks)


def arrives_whole(stand: Stand, session: dict[str, Any], body: Callable[[], Any]) -> None:
    for _ in range(8):  # a body announced to the check spoils the connection of a later one
        arrived = served(stand, stand.ask(token(session), "POST", body=body()), session)
        assert hashlib.sha256(arrived.body).digest() == hashlib.sha256(MEBIBYTE).digest()


def test_large_body_refused(stand: Stand) -> None:
    """a POST of 1 MiB without a session is a 401 at once"""
    is_refused_at_once(stand, lambda: MEBIBYTE)


def test_chunked_body_refused(stand: Stand) -> None:
    """so is one in chunks"""
    is_refused_at_once(stand, in_chunks)


def is_refused_at_once(stand: Stand, body: Callable[[], Any]) -> None:
    for _ in range(8):
        begun = time.monotonic()
        refused(stand, stand.ask(method="POST", body=body()))
        assert time.monotonic() - begun < 1


@pytest.mark.parametrize("announced", ["", "Trailer: X-ID-Usuario\r\n"], ids=["", "announced"])
@pytest.mark.parametrize("spelling", ["X-ID-Usuario", "x_id_usuario"])
def test_trailers(stand: Stand, session: dict[str, Any], spelling: str, announced: str) -> None:
    """identity headers do not arrive in a trailer either"""
    head = f"POST / HTTP/1.1\r\nHost: a\r\nx-auth-token: {session['Token_Sesion']}\r\n{announced}"
    for body in "", "5\r\nhello\r\n":
        trailer = f"{body}0\r\n{spelling}: {SPOOFED}\r\n\r\n"
        request = f"{head}Transfer-Encoding: chunked\r\n\r\n{trailer}"
        assert raw(stand.port, request.encode()) in (200, 400, 411)
    assert not stand.backend.application.without_identity


def test_large_head(stand: Stand, session: dict[str, Any]) -> None:
    """a cookie of 7 KiB and a query of 7 KiB pass"""
    target = "/?" + "q" * 7000
    reply = stand.ask([*token(session), ("Cookie", "c=" + "c" * 7000)], target=target)
    assert served(stand, reply, session).target == target


TARGETS = [
    "/a?b=c&b=d%20e",
    "/a?x-auth-token=b",
    "/?a?b#c"[:-2],
    "/a;b=c/d",
    "/%7Ea/~b",
    "/a%2Fb",
    "/a%2fb%2Fc",
    "/a%252Fb",
    "/a%20b%C3%B1",
    "/sesiones",
    "/sesiones/verificar",
    "/sesiones/verificar/a",
    "/a%0d%0aX-ID-Usuario:%20666",
]

DOTS = ["/a//b", "/a/./b/../c", "/a/%2e%2e/b", "/a/%2E./b"]

ODD_TARGETS = [
    "//a",
    "/../a",
    "/../../sesiones",
    "/..%2f..%2fsesiones",
    "/..",
    "/a/../..",
    "/a%00b",
    "/a\tb",
    "/a\\b",
    "/_sesiones",
    "*",
    "a",
    "http://a/b",
    "http://127.0.0.1:8000/sesiones/verificar",
]


def normal(target: str) -> str:
    """The target with its percent-encoding normalized (RFC 3986, 6.2.2)."""

    def escape(match: re.Match[str]) -> str:
        character = unquote(match[0])
        return character if re.fullmatch(r"[A-Za-z0-9._~-]", character) else match[0].upper()

    return re.sub(r"%[0-9A-Fa-f]{2}", escape, target)


@pytest.mark.parametrize("target", TARGETS)
def test_targets(stand: Stand, session: dict[str, Any], target: str) -> None:
    """paths and queries arrive as sent, encoded slashes among them"""
    arrived = served(stand, stand.ask(token(session), target=target), session)
    assert normal(arrived.target) == normal(target)


@pytest.mark.parametrize("target", DOTS)
def test_dots(stand: Stand, session: dict[str, Any], target: str) -> None:
    """so do `..` and `//` in a path"""
    assert served(stand, stand.ask(token(session), target=target), session).target == target


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "CONNECT"])
@pytest.mark.parametrize("target", TARGETS + DOTS + ODD_TARGETS)
def test_targets_refused(stand: Stand, target: str, method: str) -> None:
    """no path, query or method gets by the check"""
    status = raw(stand.port, f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert status >= 400 or target == "*"  # Go answers OPTIONS * itself
    assert not stand.arrived


HIDDEN = [
    ("POST", "/sesiones"),
    ("PUT", "/sesiones"),
    ("GET", "/sesiones/usuarios/7"),
    ("HEAD", "/sesiones/usuarios/7"),
    ("DELETE", "/sesiones/usuarios/7"),
    ("DELETE", "/sesiones/usuarios/7/1"),
    ("POST", "/sesiones/introspeccion"),
    ("POST", "/sesiones/revocacion"),
]
"""What the application's backend alone may ask of the service."""

SPELLINGS = [
    "{path}",
    "{path}/",
    "{path}?a=b",
    "{path}%20",
    "{path};a",
    "/{path}",
    "//{path}",
    "/..{path}",
    "/.{path}",
    "/a/..{path}",
    "/../..{path}",
    "/%2e%2e{path}",
    "/..%2f{path}",
    "/%2f{path}",
    "/%73{rest}",
    "/%2573{rest}",
    "{upper}",
    "/sesiones/verificar/../..{path}",
    "/sesiones/verificar{path}",
    "/sesiones/self/../..{path}",
    "/_sesiones{path}",
    "/_sesiones/../..{path}",
    "http://127.0.0.1:8000{path}",
    "http://sesiones{path}",
    "/..",
    "/../",
    "/%2e%2e",
]
"""Ways to write a path; {rest} is without its first two characters, "/s"."""


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("method", "path"), HIDDEN)
def test_service_hidden(
    logged: Stand, session: dict[str, Any], method: str, path: str, spelling: str
) -> None:
    """nothing of the service but the check can be reached through it: neither `POST` and `PUT \
/sesiones` nor `/sesiones/usuarios`, `/sesiones/introspeccion` and `/sesiones/revocacion`, in any \
spelling"""
    live = session["Token_Sesion"]
    target = spelling.format(path=path, rest=path[2:], upper=path.upper())
    form = f"token={live}&ID_Usuario=1&Dispositivo=a".encode()
    for credential in f"x-auth-token: {live}", f"Authorization: Bearer {'k' * 32}":
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: a\r\n{credential}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(form)}\r\n\r\n"
        )
        assert raw(logged.port, head.encode() + form) in (200, 301, 307, 308, 400, 401, 404)
    targets = set().union(*map(asked, logged.backend.nodes))
    assert targets <= {"/sesiones/verificar"}


def asked(node: Service) -> set[str]:
    """The targets that the node was asked for since the last call. It logs every request."""
    marks = node.log.count("/mark")
    node.request("GET", "/mark")
    assert comes_true(lambda: node.log.count("/mark") > marks, 5)
    return set(re.findall(r'"\S+ (\S+) HTTP', node.log.split("/mark")[-2]))


# When something fails


def test_service_down(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while both nodes are down, and then it recovers"""
    with stand.backend.without(0, 1):
        for _ in range(5):
            for headers in (token(session), []):
                unavailable(stand, time.monotonic(), stand.ask(headers))
    recovers(stand, session)


def test_service_hung(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while both nodes hang, and then it recovers"""
    with stand.backend.hung(0, 1):
        for _ in range(2):
            unavailable(stand, time.monotonic(), stand.ask(token(session)))
    recovers(stand, session)


def test_redis_down(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while Redis is down, and then it recovers"""
    stand.backend.redis.stop()
    try:
        for _ in range(3):
            unavailable(stand, time.monotonic(), stand.ask(token(session)))
    finally:
        stand.backend.redis.start()
    recovers(stand, session)


def test_redis_hung(stand: Stand, session: dict[str, Any]) -> None:
    """503 with `Retry-After` while Redis hangs, and then it recovers"""
    process = stand.backend.redis.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            unavailable(stand, time.monotonic(), stand.ask(token(session)))
    finally:
        process.send_signal(signal.SIGCONT)
    recovers(stand, session)


@pytest.mark.parametrize("number", [0, 1])
def test_node_killed(stand: Stand, session: dict[str, Any], number: int) -> None:
    """one of two nodes killed under load, and started again: no request fails"""
    time.sleep(1.5)  # the outages of the tests before are forgotten: the other node is in use
    with load(stand.port, token(session), clients=4) as answers:
        time.sleep(0.3)
        with stand.backend.without(number):
            time.sleep(0.7)
        time.sleep(1.0)
    assert len(answers) > 100
    assert {status for status, _ in answers} == {200}


def test_node_hung(stand: Stand, session: dict[str, Any]) -> None:
    """one of two nodes hangs under load: no request fails"""
    time.sleep(1.5)
    # The load ends first: a node that goes on after a stop takes its Redis for silent, for once.
    with ExitStack() as hanging, load(stand.port, token(session), clients=4) as answers:
        time.sleep(0.3)
        hanging.enter_context(stand.backend.hung(0))
        time.sleep(2.5)
    assert {status for status, _ in answers} == {200}
    assert max(seconds for _, seconds in answers) < OUTAGE_SECONDS
    recovers(stand, session)


# What it costs


@pytest.mark.parametrize("live", [True, False], ids=["live", "unknown"])
def test_connections(gateway: Gateway, backend: Backend, live: bool) -> None:
    """16 clients, 1,000 checks, passed or refused: at most 32 connections to the service"""
    session = backend.new_session() if live else {"Token_Sesion": "ses_" + "A" * 45}
    with (
        Backend(backend.redis, backend.application, SESIONES_ACCESS_LOG="1") as logged,
        RunningGateway(gateway, logged.ports, backend.application.port) as running,
    ):
        with load(running.port, token(session), CLIENTS) as answers:
            while len(answers) < 1000:
                time.sleep(0.01)
        opened = [re.findall(r"127\.0\.0\.1:(\d+) - ", node.log) for node in logged.nodes]
    assert {status for status, _ in answers} == {200 if live else 401}
    assert sum(map(len, opened)) >= 1000
    assert sum(len(set(ports)) for ports in opened) <= 2 * CLIENTS
