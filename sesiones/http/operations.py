"""Health and metrics, for the operators of the service. Neither is logged nor counted."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.requests import Request
from starlette.responses import Response

import sesiones
from sesiones.http.problems import Problem
from sesiones.http.process import Process
from sesiones.metrics import FAMILIES, SERVICE_FAMILIES, Metrics
from sesiones.prometheus import MetricsCollector
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore

READY_SECONDS = 0.2
"""How long Redis may take to answer, for the service to be ready."""

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
"""Why the service is not ready, by the code that Redis's error begins with. The text of the error
itself may hold a secret."""


MEASURE_SECONDS = 5.0
"""How old the measurements of another worker can be that /metrics shows."""


class Health:
    """The endpoints that tell whether the process lives and whether it can serve."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    async def live(self, _: Request) -> Response:
        """GET, HEAD /livez: the process answers. Redis is not asked."""
        return _ok()

    async def ready(self, _: Request) -> Response:
        """GET, HEAD /readyz and /healthz: Redis answers in time, has the scripts and accepts
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


class Exposition(MetricsCollector):
    """The endpoint that shows what the processes of this service have counted, in Prometheus's text
    format."""

    families = FAMILIES + SERVICE_FAMILIES

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self._process = Process(metrics)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure this process now and then, for a worker that is asked by Prometheus."""
        measuring = asyncio.create_task(self._measure())
        try:
            yield
        finally:
            measuring.cancel()

    async def _measure(self) -> None:
        while True:
            self._process.measure()
            await asyncio.sleep(MEASURE_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """Every metric, and the version of the service."""
        self._process.measure()
        yield from super().collect()
        build = GaugeMetricFamily(
            "sesiones_build_info", "The version that runs.", labels=["version"]
        )
        build.add_metric([sesiones.__version__], 1)
        yield build

    async def metrics(self, request: Request) -> Response:
        """GET, HEAD /metrics."""
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        headers = {"Cache-Control": "no-store", "Content-Type": content_type}
        return Response(encode(self._registry), headers=headers)
