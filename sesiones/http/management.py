"""The endpoints that manage sessions: for their owner, who has a token; for the application's
backend, which has a service key; and for OAuth clients of the backend. The contract is
docs/api.es.md."""

from collections.abc import Awaitable

import orjson
from starlette.requests import Request
from starlette.responses import Response

from sesiones.http import requests
from sesiones.http.authentication import Authentication
from sesiones.http.problems import unauthorized
from sesiones.http.responses import json_response
from sesiones.http.traffic import note_session, note_subject
from sesiones.sesion import Refusal, UserSession
from sesiones.store import SessionStore


class Management:
    """One method for each route."""

    def __init__(self, store: SessionStore, authentication: Authentication) -> None:
        self._store = store
        self._authentication = authentication

    # For the owner, with a token.

    async def list_own(self, request: Request) -> Response:
        """GET, HEAD /sesiones: the sessions of the caller's user."""
        caller = await self._authentication.caller(request.scope)
        sessions = await self._store.list_sessions_of(caller)
        if sessions is None:
            raise unauthorized(presented=True)
        return _listed(sessions)

    async def end_others(self, request: Request) -> Response:
        """DELETE /sesiones/logoutOthers: end every session of the user but the caller's."""
        caller = await self._authentication.caller(request.scope)
        return await _ended(self._store.end_others_of(caller))

    async def end_own(self, request: Request) -> Response:
        """DELETE /sesiones/<ID_Sesion>: end that session of the caller's user."""
        caller = await self._authentication.caller(request.scope)
        return await _ended(self._store.end_one_of(caller, request.path_params["ID_Sesion"]))

    # For the backend, with a service key.

    async def list_user(self, request: Request) -> Response:
        """GET, HEAD /sesiones/usuarios/<ID_Usuario>: the user's sessions."""
        self._authentication.backend(request.scope)
        return _listed(await self._store.sessions(request.path_params["ID_Usuario"]))

    async def end_user(self, request: Request) -> Response:
        """DELETE /sesiones/usuarios/<ID_Usuario> and below it .../<ID_Sesion>: end all sessions of
        the user, or that one."""
        self._authentication.backend(request.scope)
        user = request.path_params["ID_Usuario"]
        return await _ended(self._store.end_user(user, request.path_params.get("ID_Sesion")))

    async def introspect(self, request: Request) -> Response:
        """POST /sesiones/introspeccion (RFC 7662): whose session a token is. A use of it."""
        self._authentication.backend(request.scope)
        token = await requests.read_token(request)
        note_subject(request.scope, token)
        sesion = await self._store.find(token)
        members: dict[str, object] = {"active": sesion is not None}
        if sesion is not None:
            note_session(request.scope, sesion)
            members |= {
                "sub": str(sesion.ID_Usuario),
                "sid": str(sesion.ID_Sesion),
                "iat": sesion.Fecha_Inicio,
                "exp": sesion.Fecha_Expiracion,
                "token_type": "Bearer",
            }
        return json_response(orjson.dumps(members))

    async def revoke(self, request: Request) -> Response:
        """POST /sesiones/revocacion (RFC 7009): end the session of a token, if one lives."""
        self._authentication.backend(request.scope)
        token = await requests.read_token(request)
        note_subject(request.scope, token)
        await self._store.revoke(token)
        return Response(headers={"Cache-Control": "no-store"})


def _listed(sessions: list[UserSession]) -> Response:
    return json_response(orjson.dumps({"Sesiones": [each.to_dict() for each in sessions]}))


async def _ended(count: Awaitable[int | Refusal]) -> Response:
    ended = await count
    if isinstance(ended, Refusal):  # the caller's own session is not live and active
        raise unauthorized(presented=True)
    return json_response(orjson.dumps({"Sesiones_Eliminadas": ended}))
