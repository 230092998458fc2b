"""The session of a request as a FastAPI dependency. Needs FastAPI: ``pip install
'sesiones[fastapi]'``.

app = FastAPI(exception_handlers=EXCEPTION_HANDLERS)
CurrentSession = Annotated[SessionModel, Depends(session_dependency(store))]

@app.get("/yo")
async def me(sesion: CurrentSession) -> SessionModel:
    return sesion
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Self

from fastapi import Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ConfigDict, PrivateAttr
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from sesiones.clients.starlette import EXCEPTION_HANDLERS, SessionFinder, Sessions
from sesiones.http.problems import unauthorized
from sesiones.sesion import Sesion


class SessionModel(BaseModel):
    """The session of a request, without its token."""

    model_config = ConfigDict(frozen=True)

    ID_Sesion: int
    ID_Usuario: int
    Fecha_Inicio: int
    Fecha_Expiracion: int
    Estado_Sesion: int
    Ultima_Actividad: int
    Dispositivo: str
    _sesion: Sesion = PrivateAttr()

    @classmethod
    def of(cls, sesion: Sesion) -> Self:
        """The model of a session that a store has found or made."""
        model = cls.model_validate(sesion, from_attributes=True)
        model._sesion = sesion
        return model

    @property
    def sesion(self) -> Sesion:
        """The session with its token, for the methods of a store."""
        return self._sesion


class UserSessionModel(BaseModel):
    """A session in the list of its user: ``response_model=list[UserSessionModel]`` answers what
    list_sessions() returns."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    ID_Sesion: int
    Fecha_Inicio: int
    Fecha_Expiracion: int
    Estado_Sesion: int
    Ultima_Actividad: int
    Dispositivo: str
    Actual: bool


_HEADER = APIKeyHeader(name="x-auth-token", scheme_name="token", auto_error=False)
_BEARER = HTTPBearer(scheme_name="portador", auto_error=False)


def _no_scheme() -> None:
    """Stands in for the scheme of a cookie where none counts."""


def session_dependency(
    sessions: Sessions, *, cookie: str | None = None
) -> Callable[..., Awaitable[SessionModel]]:
    """A dependency that gives the live and active session of the caller, and in the OpenAPI
    document of the application says how to send the token. Works for WebSockets too.

    ``cookie``: the name of a cookie that may carry the token as well. Without a session it raises
    HTTPException 401, with the ``WWW-Authenticate`` of the service; with EXCEPTION_HANDLERS the
    body is that of the service too. Raises StoreUnavailable.
    """
    finder = SessionFinder(sessions, cookie)
    cookie_scheme: Callable[..., Any] = _no_scheme
    if cookie is not None:
        cookie_scheme = APIKeyCookie(name=cookie, scheme_name="cookie", auto_error=False)

    async def current_session(
        connection: HTTPConnection,
        # For the OpenAPI document. What they find is not used: the finder reads the headers itself.
        _header: Annotated[Any, Security(_HEADER)],
        _bearer: Annotated[Any, Security(_BEARER)],
        _cookie: Annotated[Any, Security(cookie_scheme)],
    ) -> SessionModel:
        sesion, sent = await finder.find(connection)
        if sesion is None:
            problem = unauthorized(presented=sent)
            raise HTTPException(401, problem.detail, headers=dict(problem.headers))
        return SessionModel.of(sesion)

    return current_session


__all__ = ["EXCEPTION_HANDLERS", "SessionModel", "UserSessionModel", "session_dependency"]
