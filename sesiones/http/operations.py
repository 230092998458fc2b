"""Health: whether the process lives, and whether it can serve.

Neither is logged nor counted. The reasons are in the API's language and hold no secret: Redis's
own words may.
"""

from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.requests import Request
from starlette.responses import Response

from sesiones.http.problems import Problem
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore

READY_SECONDS = 0.2

_REASONS = {
    "READONLY": "Redis es una réplica y no admite escrituras.",
    "MISCONF": "Redis no puede guardar en disco y rechaza las escrituras.",
    "NOREPLICAS": "A Redis le faltan réplicas y rechaza las escrituras.",
    "OOM": "Redis no tiene memoria para sesiones nuevas.",
    "LOADING": "Redis está cargando sus datos.",
    "BUSY": "Redis está ocupado con otro script.",
    "NOAUTH": "Redis pide credenciales.",
    "WRONGPASS": "Redis no admite las credenciales.",
    "NOPERM": "Al usuario de Redis le falta un permiso.",
}
"""By the code that Redis's error begins with."""


class Health:
    """One method a route."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    async def live(self, _: Request) -> Response:
        """GET, HEAD /livez: the process answers. Redis is not asked."""
        return _ok()

    async def ready(self, _: Request) -> Response:
        """GET, HEAD /readyz and /healthz: Redis answers in time, has the scripts and takes
        writes."""
        try:
            await self._store.probe(READY_SECONDS)
        except StoreUnavailable as error:
            raise Problem(503, _reason(error.__cause__), headers={"Retry-After": "1"}) from None
        return _ok()


def _ok() -> Response:
    return Response(headers={"Cache-Control": "no-store"})


def _reason(error: BaseException | None) -> str:
    text = str(error)
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    if code in _REASONS:
        return _REASONS[code]
    if "compiling" in text:  # "#!lua", the first line of every script
        return "La versión de Redis es anterior a la 7.0."
    if isinstance(error, (TimeoutError, RedisTimeoutError)):
        return f"Redis no responde en {READY_SECONDS * 1000:.0f} ms."
    return "No hay conexión con Redis, o rechaza las órdenes."
