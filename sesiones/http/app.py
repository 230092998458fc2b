"""The contents page: routes, lifespan, exception handlers, create_app()."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from sesiones.http import docs
from sesiones.http.credentials import ServiceKeys
from sesiones.http.exposition import Exposition
from sesiones.http.operations import Health
from sesiones.http.problems import Problem, unavailable
from sesiones.http.routes import Routes, Service
from sesiones.http.sessions import Endpoints
from sesiones.metrics import Metrics, ProcessSlots
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings
from sesiones.store.from_settings import open_store


def create_app(
    settings: Settings | None = None,
    *,
    open_without_key: bool = False,
    slots: ProcessSlots | None = None,
) -> Starlette:
    """The service as an ASGI application; without settings, those of the environment.

    ``open_without_key``: POST and PUT are open when there is no service key, instead of 401.
    Only for a server that nobody beyond this machine can reach. ``slots``: where the workers of a
    service count together (metrics.py). Raises SettingsError.
    """
    if settings is None:
        settings = Settings.read(os.environ, {})
    store = open_store(settings, Metrics(slots))
    service_keys = ServiceKeys(settings.service_key, open_without=open_without_key)
    endpoints = Endpoints(store, service_keys)
    exposition = Exposition(store.metrics)
    health = Health(store)

    routes = Routes(
        {
            "/sesiones": {"POST": endpoints.create, "PUT": endpoints.update},
            "/sesiones/self": {"GET": None, "HEAD": None},  # in Service's hands
            "/sesiones/logout": {"DELETE": endpoints.logout},
            "/sesiones/logoutAll": {"DELETE": endpoints.logout_all},
            "/openapi.json": {"GET": docs.document, "HEAD": docs.document},
            "/docs": {"GET": docs.page, "HEAD": docs.page},
            "/metrics": {"GET": exposition.show, "HEAD": exposition.show},
            "/livez": {"GET": health.live, "HEAD": health.live},
            "/readyz": {"GET": health.ready, "HEAD": health.ready},
            "/healthz": {"GET": health.ready, "HEAD": health.ready},
        }
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"check": store.checker()}  # for fast_check.py
        await store.aclose()

    return Service(
        whoami=("/sesiones/self", endpoints.whoami),
        verify=("/sesiones/verificar", endpoints.verify),
        routes=[routes],
        lifespan=lifespan,
        exception_handlers={
            Problem: _problem,
            StoreUnavailable: _unavailable,
            Exception: _internal_error,
        },
    )


async def _problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _unavailable(_: Request, __: Exception) -> Response:
    return unavailable().response()


async def _internal_error(_: Request, __: Exception) -> Response:
    return Problem(500, "Ha ocurrido un error inesperado.").response()
