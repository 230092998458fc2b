"""What reaches the application, and how. A test's docstring is its row in the table."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

import pytest

from tests.gateways.client import raw
from tests.gateways.stand import IDENTITY, SPELLINGS, SPOOFED, Stand, refused, served, token
from tests.gateways.targets import DOTS, TARGETS


@pytest.mark.parametrize("value", [SPOOFED, ""])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spoofed_identity(stand: Stand, session: dict[str, Any], spelling: str, value: str) -> None:
    """identity headers of the client's own never arrive: any case, repeated, with underscores or \
dots"""
    spoofed = [(SPELLINGS[spelling](name), value) for name in IDENTITY] * 2
    served(stand, stand.ask([*spoofed, *token(session)]), session)
    served(stand, stand.ask([*token(session), *spoofed]), session)


@pytest.mark.parametrize("name", IDENTITY)
def test_connection_header(stand: Stand, session: dict[str, Any], name: str) -> None:
    """`Connection: x-id-usuario` does not take the identity away"""
    inside = f"{name[:5]}{name}{name[5:]}"  # the name, once the name is taken out of it
    for listed in name, inside:
        headers = [*token(session), ("Connection", f"keep-alive, {listed}")]
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
    assert not stand.backend.application.wrong_identity


def test_large_head(stand: Stand, session: dict[str, Any]) -> None:
    """a cookie of 7 KiB and a query of 7 KiB pass"""
    target = "/?" + "q" * 7000
    reply = stand.ask([*token(session), ("Cookie", "c=" + "c" * 7000)], target=target)
    assert served(stand, reply, session).target == target


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
