"""Responses as bytes, for what is answered without ASGI; and the 200 of a check, which is also
answered through it."""

import functools
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sesiones.http.credentials import Headers
from sesiones.http.problems import Problem
from sesiones.http.traffic import Traffic
from sesiones.sesion import Sesion

CLOSE = b"connection: close\r\n"

# All three on every 200: a gateway that copies them overwrites what a client made up. And it is not
# a 204: Envoy lets a request through on exactly 200.
_IDENTITY = (
    STATUS_LINE[200]
    + b"%bcache-control: no-store\r\n"
    + b"x-id-usuario: %d\r\nx-id-sesion: %d\r\nx-fecha-expiracion: %d\r\n"
)
_VERIFIED = _IDENTITY + b"content-length: 0\r\n%b\r\n"
_SELF = _IDENTITY + b"content-length: %d\r\ncontent-type: application/json\r\n%b\r\n%b"


def check_succeeded(
    sesion: Sesion,
    verify: bool,
    defaults: bytes = b"",
    close: bytes = b"",
    *,
    is_head_method: bool = False,
) -> bytes:
    """The whole 200 of ``verificar`` (``verify``) or of ``self``, as bytes. ``defaults`` and
    ``close``: header lines that it has too. The answer to a HEAD has no body."""
    # Spelled out: this is done for every check.
    usuario, id_, expiracion = sesion.ID_Usuario, sesion.ID_Sesion, sesion.Fecha_Expiracion
    if verify:
        return _VERIFIED % (defaults, usuario, id_, expiracion, close)
    body = sesion.to_json()
    shown = b"" if is_head_method else body
    return _SELF % (defaults, usuario, id_, expiracion, len(body), close, shown)


def asgi_messages(response: bytes) -> tuple[Message, Message]:
    """A whole response as ASGI sends it."""
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    pairs = [line.partition(b": ") for line in lines]
    headers = [(name, value) for name, _, value in pairs]
    status = int(status_line.split(b" ")[1])
    return (
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": body},
    )


def json_response(body: bytes, *, status: int = 200) -> Response:
    """A success with that JSON."""
    return Response(body, status, {"Cache-Control": "no-store"}, "application/json")


class _DefaultLines:
    """The lines that every response begins with, of the newest list of default headers: uvicorn
    makes that list anew each second."""

    headers: Headers | None = None
    lines = b""
    success = b""
    """The same behind the status line of a 200."""


def default_lines(headers: Headers) -> bytes:
    """uvicorn's default headers as header lines."""
    if _DefaultLines.headers is not headers:
        _DefaultLines.headers = headers
        _DefaultLines.lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        _DefaultLines.success = STATUS_LINE[200] + _DefaultLines.lines
    return _DefaultLines.lines


def success_lines(headers: Headers) -> bytes:
    """The status line of a 200, and uvicorn's default headers."""
    if _DefaultLines.headers is not headers:
        default_lines(headers)
    return _DefaultLines.success


def behind_defaults(response: bytes) -> bytes:
    """What follows the status line and the default headers in a 200 without default headers."""
    return response.removeprefix(STATUS_LINE[200])


def whole(defaults: Headers, response: Response, close: bytes, *, with_body: bool) -> bytes:
    """A whole response, as uvicorn would write it."""
    lines = [STATUS_LINE[response.status_code], default_lines(defaults)]
    for name, value in response.raw_headers:
        lines += [name, b": ", value, b"\r\n"]
    return b"".join([*lines, close, b"\r\n", bytes(response.body) if with_body else b""])


@functools.cache  # there are few, and a flood of slow clients wants them at once
def closing(problem: Problem) -> Response:
    """The response of a problem that ends its connection."""
    response = problem.response()
    response.headers["Connection"] = "close"
    return response


def error_application(problem: Problem, traffic: Traffic) -> Any:
    """An application that answers every request with the problem, and closes."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await closing(problem)(scope, receive, traffic.observed(scope, send))

    return app
