"""Authentication by session, for API nodes on Starlette or FastAPI. Needs Starlette: ``pip install
'sesiones[starlette]'``. For a typed FastAPI dependency see clients/fastapi.py.

app = Starlette(routes=..., exception_handlers=EXCEPTION_HANDLERS)
app.add_middleware(
    AuthenticationMiddleware, backend=SessionBackend(store), on_error=on_error
)
"""

import re
from typing import Any, Protocol

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    UnauthenticatedUser,
)
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from sesiones.http import problems
from sesiones.http.credentials import caller_token
from sesiones.http.problems import Problem, unauthorized, unavailable
from sesiones.sesion import Sesion, StoreUnavailable


class Sessions(Protocol):
    """A source of sessions: SessionStore, or clients.http.SessionClient."""

    async def find(self, token: str) -> Sesion | None:
        """The live and active session of a well-formed token. Raises StoreUnavailable."""


class SessionFinder:
    """Finds the session of a request: by x-auth-token or Authorization: Bearer, as the service
    does, and by the cookie of the name ``cookie``, if one is given. Exactly one credential may be
    sent, a cookie included. Each request counts as a use of its session."""

    def __init__(self, sessions: Sessions, cookie: str | None = None) -> None:
        if cookie is not None and not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", cookie):
            raise ValueError("cookie must be the name of a cookie (RFC 6265, 4.1.1)")
        self._sessions = sessions
        self._cookie = None if cookie is None else cookie.encode()

    async def find(self, connection: HTTPConnection) -> tuple[Sesion | None, bool]:
        """The live and active session, and whether a credential that counts was sent, valid or not.
        Raises StoreUnavailable."""
        token, sent = caller_token(connection.scope["headers"], self._cookie)
        return None if token is None else await self._sessions.find(token), sent


class SessionUser(BaseUser):
    """``request.user`` of a request with a session, which is in ``request.user.sesion``."""

    def __init__(self, sesion: Sesion) -> None:
        self.sesion = sesion

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def identity(self) -> str:
        """ID_Usuario, as text."""
        return str(self.sesion.ID_Usuario)

    @property
    def display_name(self) -> str:
        """The same, because a session holds no name."""
        return self.identity


class NoSessionUser(UnauthenticatedUser):
    """``request.user`` of a request without a session."""

    def __init__(self, *, credential_sent: bool) -> None:
        self.credential_sent = credential_sent


class SessionBackend(AuthenticationBackend):
    """Authenticates a request by its session, which a SessionFinder finds.

    With a live and active session the scope ``authenticated`` is granted; without one the user is
    an UnauthenticatedUser of Starlette's. Raises AuthenticationError when the sessions cannot be
    asked, which on_error() turns into a 503.
    """

    def __init__(self, sessions: Sessions, *, cookie: str | None = None) -> None:
        self._finder = SessionFinder(sessions, cookie)

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        try:
            sesion, sent = await self._finder.find(conn)
        except StoreUnavailable as error:
            raise AuthenticationError("the sessions cannot be asked") from error
        if sesion is None:
            return AuthCredentials(), NoSessionUser(credential_sent=sent)
        return AuthCredentials(["authenticated"]), SessionUser(sesion)


def on_error(_: HTTPConnection, __: Exception) -> Response:
    """503, as the service answers it."""
    return unavailable().response()


async def _unauthorized(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    user = connection.scope.get("user")
    problem = unauthorized(presented=isinstance(user, NoSessionUser) and user.credential_sent)
    headers = {**problem.headers, **(error.headers or {})}
    return Problem(problem.status, problem.detail, headers=headers).response()


EXCEPTION_HANDLERS: dict[Any, Any] = {
    401: _unauthorized,
    StoreUnavailable: problems.EXCEPTION_HANDLERS[StoreUnavailable],
}
"""Answers as the service does: an HTTPException of status 401, such as that of ``requires(...,
status_code=401)``, with its 401; and StoreUnavailable with its 503. Both refuse the handshake of a
WebSocket likewise. For ``exception_handlers`` of an application."""
