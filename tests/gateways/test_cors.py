"""The configurations for a website: which pages may ask (CORS, CSRF). A test's docstring is its row
in the table."""

import time
from contextlib import closing
from typing import Any

import pytest

from tests.gateways.client import WebSocket
from tests.gateways.stand import Stand, cookie, passed, recovers, refused, served, unavailable
from tests.harness.service import Reply

TARGETS = ["/", "/a/b?c", "/public/a", "/auth/login", "/background/a"]


def origins(stand: Stand) -> list[str]:
    """Those that may ask."""
    return [stand.running.origin, f"http://localhost:{stand.running.front}"]


def readable(reply: Reply, origin: str) -> None:
    """A page of the origin may read the reply, and no cache shows it to another one."""
    allowed(reply, origin)
    assert "Origin" in reply.headers["vary"].split(", ")


def allowed(reply: Reply, origin: str) -> None:
    assert reply.headers["access-control-allow-origin"] == origin
    assert reply.headers["access-control-allow-credentials"] == "true"


def preflight(stand: Stand, origin: str, target: str) -> Reply:
    headers = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "DELETE"),
        ("Access-Control-Request-Headers", "content-type,x-auth-token"),
    ]
    return stand.ask(headers, "OPTIONS", target)


@pytest.mark.parametrize("target", TARGETS)
def test_preflight(stand: Stand, target: str) -> None:
    """a CORS preflight is answered without a token, and does not arrive"""
    for origin in origins(stand):
        reply = preflight(stand, origin, target)
        assert reply.status in (200, 204)
        allowed(reply, origin)
        words = {
            name: {word.strip().lower() for word in reply.headers[name].split(",")}
            for name in ("access-control-allow-methods", "access-control-allow-headers")
        }
        methods = {"get", "head", "post", "put", "patch", "delete"}
        assert words["access-control-allow-methods"] == methods
        assert words["access-control-allow-headers"] >= {"content-type", "x-auth-token"}
        assert not stand.arrived


def test_options_that_is_no_preflight(stand: Stand, session: dict[str, Any]) -> None:
    """another OPTIONS is checked like any request"""
    origin = ("Origin", stand.running.origin)
    method = ("Access-Control-Request-Method", "GET")
    for headers in [], [origin], [method]:
        refused(stand, stand.ask(headers, "OPTIONS"))
        served(stand, stand.ask([*headers, *cookie(session)], "OPTIONS"), session)


def test_cors_headers(stand: Stand, session: dict[str, Any]) -> None:
    """the CORS headers are on every answer, also on a 401"""
    for origin in origins(stand):
        sent = [("Origin", origin)]
        for target in "/", "/background/a":
            reply = stand.ask([*sent, *cookie(session)], target=target)
            readable(reply, origin)
            served(stand, reply, session)
            reply = stand.ask(sent, target=target)
            readable(reply, origin)
            refused(stand, reply)
            exposed = reply.headers["access-control-expose-headers"].lower()
            assert "www-authenticate" in exposed
        for target in "/public/a", "/auth/login":
            reply = stand.ask(sent, "POST", target)
            readable(reply, origin)
            passed(stand, reply)
    reply = stand.ask(cookie(session))
    assert "access-control-allow-origin" not in reply.headers
    assert "Origin" in reply.headers["vary"]


def test_cors_headers_of_a_503(stand: Stand, session: dict[str, Any]) -> None:
    """and on a 503"""
    sent = [("Origin", stand.running.origin), *cookie(session)]
    outages = [stand.backend.without(0, 1), stand.backend.without_redis()]
    for outage in outages:
        with outage:
            begun = time.monotonic()
            reply = stand.ask(sent)
            unavailable(stand, begun, reply)
        readable(reply, stand.running.origin)
        recovers(stand, session)


def foreign(stand: Stand) -> list[str]:
    own = stand.running.origin
    return [
        "null",
        "https://evil.example",
        "http://localhost",
        f"{own}0",
        f"{own}/",
        f"{own}.evil.example",
        f"http://evil.example/{own}",
        own.upper(),  # origins are compared with their case (RFC 6454, 6.2)
        own.replace("http:", "Http:"),
        own.replace("localhost", "LocalHost"),
        own.replace("http:", "https:"),
        own.replace("localhost", "127.0.0.1"),
        own.replace("localhost", "a.localhost"),
        f"{own} https://evil.example",
        f"{own},https://evil.example",
        f"https://evil.example, {own}",
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_foreign_origins(stand: Stand, session: dict[str, Any], target: str) -> None:
    """403 when the page of another origin asks, by any method, on every path: nothing arrives"""
    for origin in foreign(stand):
        headers = [("Origin", origin), *cookie(session)]
        for method in "GET", "POST", "DELETE":
            reply = stand.ask(headers, method, target)
            refused(stand, reply, 403)
            assert "access-control-allow-origin" not in reply.headers
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.json()["status"] == 403
        refused(stand, preflight(stand, origin, target), 403)
        both = [("Origin", stand.running.origin), *headers]
        for headers in both, both[::-1]:
            refused(stand, stand.ask(headers, target=target), 403)


def test_foreign_websockets(stand: Stand, session: dict[str, Any]) -> None:
    """so for a WebSocket"""
    for origin in foreign(stand):
        headers = [("Origin", origin), *cookie(session)]
        with closing(WebSocket(stand.port, headers, "/live")) as websocket:
            assert websocket.status == 403
    assert not stand.arrived
