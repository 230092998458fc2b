"""WebSockets and server-sent events. A test's docstring is its row in the table."""

import time
from contextlib import closing
from typing import Any

from tests.gateways.client import EventStream, WebSocket
from tests.gateways.stand import EVENT_SECONDS, SPOOFED, Stand, token


def test_websocket(stand: Stand, session: dict[str, Any]) -> None:
    """a WebSocket opens with a live session, and carries the identity"""
    spoofed = [("X-ID-Usuario", SPOOFED)]
    with closing(WebSocket(stand.port, [*spoofed, *token(session)], "/live?a=b")) as websocket:
        assert websocket.status == 101, stand.running.log
        for text in "hello", "hello again":
            assert websocket.ask(text) == text
    (arrived,) = stand.arrived
    assert (arrived.method, arrived.target) == ("WEBSOCKET", "/live?a=b")
    assert ("x-id-usuario", str(session["ID_Usuario"])) in arrived.identity()
    assert arrived.has_right_identity()


def test_websocket_refused(stand: Stand, session: dict[str, Any]) -> None:
    """without one it is a 401"""
    stand.backend.end_session(session)
    for headers in [], token(session):
        with closing(WebSocket(stand.port, headers, "/live")) as websocket:
            assert websocket.status == 401
    assert not stand.arrived


def test_upgrade_to_http2(stand: Stand, session: dict[str, Any]) -> None:
    """`Upgrade: h2c` never arrives, nor beside `websocket`"""
    for values in ["h2c"], ["websocket, h2c"], ["h2c,websocket"], ["websocket", "h2c"]:
        upgrade = [("Upgrade", value) for value in values]
        settings = ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA")
        connection = ("Connection", "Upgrade, HTTP2-Settings")
        reply = stand.ask([*token(session), *upgrade, settings, connection])
        assert reply.status in (200, 400, 403, 426)
        for arrived in stand.arrived:
            assert arrived.values("upgrade") in ([], ["websocket"])


def test_server_sent_events(stand: Stand, session: dict[str, Any]) -> None:
    """server-sent events arrive one by one, when they are sent"""
    with closing(EventStream(stand.port, token(session))) as stream:
        assert stream.status == 200
        for _ in range(3):
            sent = stream.read()
            assert time.monotonic() - sent < 3 * EVENT_SECONDS
