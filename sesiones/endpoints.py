"""The endpoints: parse, call the store, respond. The contract is docs/api.es.md."""

from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response

from sesiones import payloads
from sesiones.credentials import ServiceKeys, caller_token
from sesiones.payloads import Members
from sesiones.problems import Problem, unauthorized
from sesiones.sesion import Sesion
from sesiones.store import BadDates, Immutable, Refusal, SessionStore

NO_STORE = {"Cache-Control": "no-store"}

_BAD_DATES = {
    "window": "debe ser posterior a Ultima_Actividad",
    "lifetime": "supera la vida máxima de la sesión",
    "past": "dejaría la sesión ya expirada",
}


class Endpoints:
    """One method a route."""

    def __init__(self, store: SessionStore, service_keys: ServiceKeys) -> None:
        self._store = store
        self._service_keys = service_keys

    async def whoami(self, request: Request) -> Response:
        """GET, HEAD /sesiones/self: the caller's session."""
        sesion = await self._authenticate(request)
        return _json(sesion.to_json(), headers=_identity(sesion))

    async def verify(self, request: Request) -> Response:
        """Any method /sesiones/verificar: whose the session is, in headers alone."""
        sesion = await self._authenticate(request)
        # 200 and not 204: Envoy lets a request through on exactly 200.
        return Response(headers={**NO_STORE, **_identity(sesion)})

    async def create(self, request: Request) -> Response:
        """POST /sesiones."""
        members, form = await self._service_body(request)
        ID_Usuario, Dispositivo = payloads.creation(members, form=form)
        sesion = await self._store.create(ID_Usuario, Dispositivo)
        return _json(sesion.to_json(), status=201)

    async def update(self, request: Request) -> Response:
        """PUT /sesiones."""
        members, form = await self._service_body(request)
        updated = await self._store.update(payloads.update(members, form=form))
        match updated:
            case None:
                raise Problem(404, "No hay ninguna sesión viva con ese Token_Sesion.")
            case Immutable(fields):
                errores = [(campo, "no se puede cambiar") for campo in fields]
                raise Problem(409, "Hay campos que no se pueden cambiar.", errores=errores)
            case BadDates(reason):
                raise payloads.unprocessable(("Fecha_Expiracion", _BAD_DATES[reason]))
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
        caller = (await self._authenticate(request)).Token_Sesion
        body, _ = await _read_body(request, optional=True)
        query = payloads.parse_form(request.scope["query_string"])
        ended = await end(caller, payloads.designation(body, query))
        if ended is Refusal.UNAUTHENTICATED:  # it ended while the request was read
            raise unauthorized(presented=True)
        if ended is Refusal.FORBIDDEN:
            raise Problem(403, "Token_Sesion es la sesión de otro usuario.")
        return _json(orjson.dumps({"Sesiones_Eliminadas": ended}))

    async def _authenticate(self, request: Request) -> Sesion:
        token, presented = caller_token(request.scope["headers"])
        sesion = await self._store.find(token) if token is not None else None
        if sesion is None:
            raise unauthorized(presented=presented)
        return sesion

    async def _service_body(self, request: Request) -> tuple[Members, bool]:
        admitted, presented = self._service_keys.admit(request.scope["headers"])
        if not admitted:
            raise unauthorized(presented=presented)
        return await _read_body(request)


def _identity(sesion: Sesion) -> dict[str, str]:
    """All three on every 200: a gateway that copies them overwrites what a client made up."""
    return {
        "X-ID-Usuario": str(sesion.ID_Usuario),
        "X-ID-Sesion": str(sesion.ID_Sesion),
        "X-Fecha-Expiracion": str(sesion.Fecha_Expiracion),
    }


def _json(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, {**NO_STORE, **(headers or {})}, "application/json")


async def _read_body(request: Request, *, optional: bool = False) -> tuple[Members, bool]:
    """The members of the body, and whether it is a form. Raises Problem 415, 413 or 400.

    ``optional``: an empty body is no members, whatever its type.
    """
    types = [value for name, value in request.scope["headers"] if name == b"content-type"]
    media_type = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    parse = payloads.PARSERS.get(media_type)
    if parse is None:
        if optional and not await _has_body(request):
            return {}, False
        accepted = " o ".join(media.decode() for media in payloads.PARSERS)
        raise Problem(415, f"El cuerpo debe ser {accepted}.")
    body = await _collect(request)
    if optional and not body:
        return {}, False
    return parse(body), parse is payloads.parse_form


async def _has_body(request: Request) -> bool:
    async for chunk in request.stream():
        if chunk:
            return True
    return False


async def _collect(request: Request) -> bytes:
    too_large = Problem(413, f"El cuerpo supera los {payloads.BODY_MAX_BYTES} bytes.")
    if int(request.headers.get("content-length", 0)) > payloads.BODY_MAX_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > payloads.BODY_MAX_BYTES:
            raise too_large
    return bytes(body)
