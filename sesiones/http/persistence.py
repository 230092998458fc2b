"""Persistence of a connection behind a response, where uvicorn falls short of RFC 9112, 9.3.

A connection of HTTP/1.0 is kept when its client asks for that, and the response says so. A final
response to a request that waits for "100 Continue" closes its connection, because the client may
send the body or leave it out, and the service could not tell it from the next request (RFC 9110,
10.1.1). A response that closes while the body is on its way lets the client finish: bytes that are
not read would reset the connection, and the client could lose the response (RFC 9112, 9.6).
"""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class _LingeringTransport:
    """Stands in for the transport that uvicorn closes behind a response, and closes it later."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def persistent(
    cycle: RequestResponseCycle, app: ASGIApp, close: Callable[[], None]
) -> Callable[..., Any]:
    """The application for the request of that cycle. ``close`` ends the connection behind a
    response, and may let the client finish first."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if not cycle.more_body and scope["http_version"] == "1.1":  # the usual case
            await app(scope, receive, send)
            return

        async def send_message(message: Message) -> None:
            if message["type"] == "http.response.start":
                if cycle.more_body:
                    transport: Any = _LingeringTransport(cycle.transport, close)
                    cycle.transport = transport
                    if cycle.waiting_for_100_continue:
                        cycle.keep_alive = False
                if cycle.keep_alive and scope["http_version"] == "1.0":
                    headers = [*message["headers"], (b"connection", b"keep-alive")]
                    message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_message)

    return run
