"""The endpoints: parse, call the store, respond. The contract is docs/api.es.md."""

from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sesiones.http import requests, responses
from sesiones.http.authentication import Authentication
from sesiones.http.heads import slides
from sesiones.http.problems import Problem, unauthorized, unavailable
from sesiones.http.responses import json_response
from sesiones.http.traffic import note_session, note_subject
from sesiones.policy import SessionPolicy
from sesiones.sesion import BAD_DATES, BadDates, Immutable, Refusal, StoreUnavailable
from sesiones.store import SessionStore


class Endpoints:
    """One method for each route. The checks are plain ASGI: a Request would only cost time."""

    def __init__(
        self, store: SessionStore, authentication: Authentication, policy: SessionPolicy
    ) -> None:
        self._store = store
        self._authentication = authentication
        self._policy = policy

    async def whoami(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET, HEAD /sesiones/self: the caller's session."""
        await self._check(scope, receive, send, verify=False)

    async def verify(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any method /sesiones/verificar: whose session it is, in headers alone."""
        await self._check(scope, receive, send, verify=True)

    async def _check(self, scope: Scope, receive: Receive, send: Send, *, verify: bool) -> None:
        try:
            slide = slides(scope["headers"])
            sesion = await self._authentication.caller(scope, slide=slide)
        except (Problem, StoreUnavailable) as error:
            problem = error if isinstance(error, Problem) else unavailable()
            await problem.response()(scope, receive, send)
            return
        for message in responses.asgi_messages(responses.check_succeeded(sesion, verify)):
            await send(message)

    async def create(self, request: Request) -> Response:
        """POST /sesiones: a new session, and what else its login asks for."""
        self._authentication.backend(request.scope)
        members, form = await requests.read_body(request, unique=requests.LOGIN_FIELDS)
        ID_Usuario, Dispositivo, login = requests.creation(members, self._policy, form=form)
        note_subject(request.scope, None, ID_Usuario=ID_Usuario)
        sesion = await self._store.create(ID_Usuario, Dispositivo, login)
        note_session(request.scope, sesion)
        return json_response(sesion.to_json(), status=201)

    async def update(self, request: Request) -> Response:
        """PUT /sesiones: change the live session that Token_Sesion designates."""
        self._authentication.backend(request.scope)
        members, form = await requests.read_body(request)
        given = requests.update(members, form=form)
        note_subject(request.scope, given.Token_Sesion)
        updated = await self._store.update(given)
        match updated:
            case None:
                raise Problem(404, "No hay ninguna sesión viva con ese Token_Sesion.")
            case Immutable(fields):
                given_numbers = {"ID_Sesion": given.ID_Sesion, "ID_Usuario": given.ID_Usuario}
                equal = {field: n for field, n in given_numbers.items() if field not in fields}
                note_subject(request.scope, given.Token_Sesion, **equal)
                errores = [(campo, "no se puede cambiar") for campo in fields]
                raise Problem(409, "Hay campos que no se pueden cambiar.", errores=errores)
            case BadDates(reason):
                note_session(request.scope, given)
                raise requests.unprocessable(("Fecha_Expiracion", BAD_DATES[reason]))
        note_session(request.scope, updated)
        return json_response(updated.to_json())

    async def logout(self, request: Request) -> Response:
        """DELETE /sesiones/logout: end the session that Token_Sesion designates."""
        return await self._end(request, self._store.end)

    async def logout_all(self, request: Request) -> Response:
        """DELETE /sesiones/logoutAll: end every session of the caller's user."""
        return await self._end(request, self._store.end_all)

    async def _end(
        self, request: Request, end: Callable[[str, str], Awaitable[int | Refusal]]
    ) -> Response:
        # The script authenticates the caller once more, in the same step that ends sessions. This
        # first check is still needed: the 401 comes before every error of the body and before the
        # body is asked for, and a logout is a use of the caller's session, which may live on.
        caller = (await self._authentication.caller(request.scope)).Token_Sesion
        body, _ = await requests.read_body(request, optional=True)
        query = requests.parse_form(request.scope["query_string"])
        ended = await end(caller, requests.designation(body, query))
        if ended is Refusal.UNAUTHENTICATED:  # the session ended while the request was read
            raise unauthorized(presented=True)
        if ended is Refusal.FORBIDDEN:
            raise Problem(403, "Token_Sesion es la sesión de otro usuario.")
        return json_response(orjson.dumps({"Sesiones_Eliminadas": ended}))
