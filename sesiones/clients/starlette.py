"""Authentication by session, for API nodes on Starlette or FastAPI. Needs Starlette: ``pip install
'sesiones[starlette]'``.

app.add_middleware(
    AuthenticationMiddleware, backend=SessionBackend(store), on_error=on_error
)
"""

from typing import Protocol

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
)
from starlette.requests import HTTPConnection
from starlette.responses import Response

from sesiones.http.credentials import caller_token
from sesiones.http.problems import unavailable
from sesiones.sesion import Sesion, StoreUnavailable


class Sessions(Protocol):
    """A source of sessions: SessionStore, or clients.http.SessionClient."""

    async def find(self, token: str) -> Sesion | None:
        """The live and active session of a well-formed token. Raises StoreUnavailable."""


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


class SessionBackend(AuthenticationBackend):
    """Authenticates by x-auth-token or Authorization: Bearer, as the service does. Each request
    counts as a use of its session.

    With a live and active session the scope ``authenticated`` is granted; without one the user is
    Starlette's UnauthenticatedUser. Raises AuthenticationError when the sessions cannot be asked,
    which on_error() turns into a 503.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        token, _ = caller_token(conn.scope["headers"])
        if token is None:
            return None
        try:
            sesion = await self._sessions.find(token)
        except StoreUnavailable as error:
            raise AuthenticationError("the sessions cannot be asked") from error
        if sesion is None:
            return None
        return AuthCredentials(["authenticated"]), SessionUser(sesion)


def on_error(_: HTTPConnection, __: Exception) -> Response:
    """503, as the service answers it."""
    return unavailable().response()
