"""Errors as problem details (RFC 9457), in the API's language."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from sesiones.sesion import LimitReached, StoreUnavailable

TITLES = {
    400: "Solicitud incorrecta",
    401: "No autorizado",
    403: "Prohibido",
    404: "No encontrado",
    405: "Método no permitido",
    408: "Tiempo de espera agotado",
    409: "Conflicto",
    413: "Contenido demasiado grande",
    415: "Tipo de contenido no admitido",
    422: "Contenido no procesable",
    431: "Cabeceras demasiado grandes",
    500: "Error interno",
    501: "No implementado",
    503: "Servicio no disponible",
}


class Problem(Exception):
    """An error that a request is answered with. ``errores``: (campo, motivo) of each bad field;
    ``members``: further members of the body."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errores: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.errores = errores
        self.headers = headers or {}
        self.members = members or {}

    def response(self) -> Response:
        members: dict[str, object] = {
            "type": "about:blank",
            "title": TITLES[self.status],
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        if self.errores:
            members["errores"] = [
                {"campo": campo, "motivo": motivo} for campo, motivo in self.errores
            ]
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(
            orjson.dumps(members), self.status, headers, media_type="application/problem+json"
        )


def unauthorized(*, presented: bool) -> Problem:
    """The 401, which is the same for every reason. ``presented``: a header that could carry a
    credential was sent; without one there is no error code (RFC 6750, 3.1)."""
    challenge = 'Bearer realm="sesiones"' + (', error="invalid_token"' if presented else "")
    detail = "Falta una credencial válida."
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def unavailable() -> Problem:
    """The 503: Redis does not answer, or refuses."""
    return Problem(
        503,
        "El almacén de sesiones no responde; inténtelo de nuevo.",
        headers={"Retry-After": "1"},
    )


async def _problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _limit_reached(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, LimitReached)
    sessions = [session.to_dict() for session in refusal.sessions]
    count = "1 sesión" if len(sessions) == 1 else f"{len(sessions)} sesiones"
    detail = f"El usuario ya tiene {count}, y no se permite otra."
    return Problem(409, detail, members={"Sesiones": sessions}).response()


async def _unavailable(_: Request, __: Exception) -> Response:
    return unavailable().response()


async def _internal_error(_: Request, __: Exception) -> Response:
    return Problem(500, "Ha ocurrido un error inesperado.").response()


EXCEPTION_HANDLERS: Mapping[Any, Any] = {
    Problem: _problem,
    LimitReached: _limit_reached,
    StoreUnavailable: _unavailable,
    Exception: _internal_error,
}
"""How the exceptions of endpoints are answered."""
