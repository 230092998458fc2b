"""What is counted and logged of HTTP: open connections, responses by their status, and with
SESIONES_ACCESS_LOG a line for each response. Requests to the paths for operators have neither."""

import logging
import time
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import quote, unquote

from starlette.types import Message, Scope, Send

from sesiones import paths, tokens
from sesiones.http.credentials import caller_token
from sesiones.metrics import HTTP_CONNECTIONS, Metrics
from sesiones.sesion import Sesion

logger = logging.getLogger("sesiones.access")

_SUBJECT, _RESPONDED = "sesiones.subject", "sesiones.responded"
"""What is noted in a scope."""
DECODINGS_MAX = 8
"""How often a path is decoded that stays percent-encoded: each time takes time."""


def note_subject(scope: Scope, token: str | None, **numbers: int) -> None:
    """Remember what a request is about: a token, and the ID_Sesion and the ID_Usuario as far as
    they are known. None: it is about no token, though the caller may have sent one."""
    scope[_SUBJECT] = token, numbers


def note_session(scope: Scope, sesion: Sesion) -> None:
    """Remember the session that a request is about."""
    note_subject(
        scope, sesion.Token_Sesion, ID_Sesion=sesion.ID_Sesion, ID_Usuario=sesion.ID_Usuario
    )


class Traffic:
    """The HTTP traffic of this process."""

    def __init__(self, metrics: Metrics, *, access_log: bool) -> None:
        self.metrics = metrics
        self._access_log = access_log

    def connected(self) -> None:
        self.metrics.add(HTTP_CONNECTIONS)

    def disconnected(self) -> None:
        self.metrics.add(HTTP_CONNECTIONS, count=-1)

    def observed(self, scope: Scope, send: Send) -> Send:
        """``send`` for the response to the request, which is counted and logged."""
        begun = time.monotonic()

        async def send_message(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.responded(message["status"], scope, time.monotonic() - begun)
            await send(message)

        return send_message

    def responded(
        self, status: int, scope: MutableMapping[str, Any], seconds: float | None = None
    ) -> None:
        """Count and log the response to a request. ``scope``: the request's, or what is known of
        it. Only its first response is sent: an endpoint may answer when protocol.py has already
        refused the body."""
        if scope.get("path") in paths.FOR_OPERATORS or _RESPONDED in scope:
            return
        scope[_RESPONDED] = True
        self.metrics.responded(status)
        if self._access_log:
            _log(status, scope, seconds)


def _log(status: int, scope: Mapping[str, Any], seconds: float | None) -> None:
    client, method, line = scope.get("client"), scope.get("method"), "-"
    fields: dict[str, object] = {"status": status}
    if client:
        host, port = client
        host = quote(host, safe=":")  # of X-Forwarded-For, it may be any text
        fields["client"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if method is not None:
        # No query: that of a DELETE may hold a token, and a gateway may pass on that of the request
        # that it asks about.
        fields |= {"method": method, "path": quote(_decoded(scope["path"]))}
        line = f"{method} {fields['path']} HTTP/{scope['http_version']}"
    if seconds is not None:
        fields["seconds"] = round(seconds, 6)
    fields |= _subject(scope)
    shown = [f'"{line}" {status}']
    shown += [f"{seconds:.6f} s"] if seconds is not None else []
    shown += [str(fields["token"])] if "token" in fields else []
    shown += [f"{name} {fields[name]}" for name in ("ID_Sesion", "ID_Usuario") if name in fields]
    logger.info("%s - %s", fields.get("client", ""), " ".join(shown), extra=fields)


def _decoded(path: str) -> str:
    """The path without any percent-encoding: a token in it has to be found, so that it is masked,
    also when a gateway has encoded the path once more. "-" of a path that was encoded too often."""
    for _ in range(DECODINGS_MAX):
        encoded, path = path, unquote(path)
        if path == encoded:
            return path
    return "-"


def _subject(scope: Mapping[str, Any]) -> dict[str, object]:
    """Whom the request is about: what was noted, else the token and the numbers that it has."""
    token, numbers = scope.get(_SUBJECT) or (
        caller_token(scope.get("headers", ()))[0],
        scope.get("path_params", {}),
    )
    name = {"token": tokens.masked(token)} if tokens.is_well_formed(token) else {}
    return {**name, **numbers}
