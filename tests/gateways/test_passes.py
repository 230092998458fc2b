"""Which credentials pass. A test's docstring is its row in the table."""

import http.client
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.gateways.client import exchange
from tests.gateways.stand import IDENTITY, SPOOFED, Backend, Stand, refused, served, token


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
    backend.end_session(session)
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
            stand.backend.end_session(session)
            refused(stand, exchange(connection, token(session)))
    finally:
        connection.close()
