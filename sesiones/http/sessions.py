"""The endpoints: parse, call the store, respond. The contract is docs/api.es.md."""

from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sesiones.http import requests, responses
from sesiones.http.credentials import Headers, ServiceKeys, caller_token
from sesiones.http.problems import Problem, unauthorized, unavailable
from sesiones.http.requests import Members
from sesiones.metrics import CHECKS
from sesiones.sesion import BadDates, Immutable, Refusal, Sesion, StoreUnavailable
from sesiones.store import SessionStore

BAD_DATES = {
    "window": "debe ser posterior a Ultima_Actividad",
    "lifetime": "supera la vida máxima de la sesión",
    "past": "dejaría la sesión ya expirada",
}


class Endpoints:
    """One method a route."""

    def __init__(self, store: SessionStore, service_keys: ServiceKeys) -> None:
        self._store = store
        self._service_keys = service_keys

    async def whoami(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET, HEAD /sesiones/self: the caller's session. Plain ASGI, as every check."""
        await self._check(scope, receive, send, verify=False)

    async def verify(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any method /sesiones/verificar: whose the session is, in headers alone."""
        await self._check(scope, receive, send, verify=True)

    async def _check(self, scope: Scope, receive: Receive, send: Send, *, verify: bool) -> None:
        try:
            sesion = await self._authenticate(scope)
        except (Problem, StoreUnavailable) as error:
            problem = error if isinstance(error, Problem) else unavailable()
            await problem.response()(scope, receive, send)
            return
        for message in responses.asgi_messages(responses.check_succeeded(sesion, verify=verify)):
            await send(message)

    async def create(self, request: Request) -> Response:
        """POST /sesiones."""
        members, form = await self._service_body(request)
        ID_Usuario, Dispositivo = requests.creation(members, form=form)
        sesion = await self._store.create(ID_Usuario, Dispositivo)
        return _json(sesion.to_json(), status=201)

    async def update(self, request: Request) -> Response:
        """PUT /sesiones."""
        members, form = await self._service_body(request)
        updated = await self._store.update(requests.update(members, form=form))
        match updated:
            case None:
                raise Problem(404, "No hay ninguna sesión viva con ese Token_Sesion.")
            case Immutable(fields):
                errores = [(campo, "no se puede cambiar") for campo in fields]
                raise Problem(409, "Hay campos que no se pueden cambiar.", errores=errores)
            case BadDates(reason):
                raise requests.unprocessable(("Fecha_Expiracion", BAD_DATES[reason]))
        return _json(updated.to_json())

    async def logout(self, request: Request) -> Response:
        """DELETE /sesiones/logout: end the session that Token_Sesion designates."""
        return await self._end(request, self._store.end)

    async def logout_all(self, request: Request) -> Response:
        """DELETE /sesiones/logoutAll: end every session of the caller's user."""
        return await self._end(request, self._store.end_all)

    async def _end(
        self, request: Request, end: Callable[[str, str], Awaitable[int | Refusal]]
    ) -> Response:
        caller = (await self._authenticate(request.scope)).Token_Sesion
        body, _ = await _read_body(request, optional=True)
        query = requests.parse_form(request.scope["query_string"])
        ended = await end(caller, requests.designation(body, query))
        if ended is Refusal.UNAUTHENTICATED:  # it ended while the request was read
            raise unauthorized(presented=True)
        if ended is Refusal.FORBIDDEN:
            raise Problem(403, "Token_Sesion es la sesión de otro usuario.")
        return _json(orjson.dumps({"Sesiones_Eliminadas": ended}))

    async def _authenticate(self, scope: Scope) -> Sesion:
        token, presented = caller_token(scope["headers"])
        if token is None:
            self._store.metrics.add(CHECKS, "missing")
            raise unauthorized(presented=presented)
        sesion = await self._store.find(token)
        if sesion is None:
            raise unauthorized(presented=presented)
        return sesion

    async def _service_body(self, request: Request) -> tuple[Members, bool]:
        admitted, presented = self._service_keys.admit(request.scope["headers"])
        if not admitted:
            raise unauthorized(presented=presented)
        return await _read_body(request)


def _json(body: bytes, *, status: int = 200) -> Response:
    return Response(body, status, {"Cache-Control": "no-store"}, "application/json")


async def _read_body(request: Request, *, optional: bool = False) -> tuple[Members, bool]:
    """The members of the body, and whether it is a form. Raises Problem 415, 413 or 400.

    ``optional``: an empty body is no members, whatever its type and coding.
    """
    try:
        parse = _parser(request.scope["headers"])
    except Problem:
        if optional and not await _has_body(request):
            return {}, False
        raise
    body = await _collect(request)
    if optional and not body:
        return {}, False
    return parse(body), parse is requests.parse_form


def _parser(headers: Headers) -> Callable[[bytes], Members]:
    """What reads a body of these headers. Raises Problem 415."""
    codings = b",".join(_values(headers, b"content-encoding")).split(b",")
    if any(coding.strip().lower() not in (b"", b"identity") for coding in codings):
        raise Problem(
            415,
            "El cuerpo debe llegar sin comprimir ni codificar.",
            headers={"Accept-Encoding": "identity"},  # RFC 9110, 15.5.16
        )
    types = _values(headers, b"content-type")
    media_type = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    parse = requests.PARSERS.get(media_type)
    if parse is None:
        accepted = " o ".join(media.decode() for media in requests.PARSERS)
        missing = "" if any(types) else "Falta Content-Type. "
        raise Problem(415, f"{missing}El cuerpo debe ser {accepted}.")
    return parse


def _values(headers: Headers, field: bytes) -> list[bytes]:
    return [value for name, value in headers if name == field]


async def _has_body(request: Request) -> bool:
    async for chunk in request.stream():
        if chunk:
            return True
    return False


async def _collect(request: Request) -> bytes:
    too_large = Problem(413, f"El cuerpo supera los {requests.BODY_MAX_BYTES} bytes.")
    if int(request.headers.get("content-length", 0)) > requests.BODY_MAX_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > requests.BODY_MAX_BYTES:
            raise too_large
    return bytes(body)
