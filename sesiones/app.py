"""The contents page: routes, lifespan, exception handlers, create_app()."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from sesiones.connection import connect
from sesiones.credentials import ServiceKeys
from sesiones.endpoints import Endpoints
from sesiones.problems import Problem, unavailable
from sesiones.routing import Routes, Service
from sesiones.settings import Settings
from sesiones.store import SessionStore, StoreUnavailable


def create_app(settings: Settings | None = None, *, open_without_key: bool = False) -> Starlette:
    """The service as an ASGI application; without settings, those of the environment.

    ``open_without_key``: POST and PUT are open when there is no service key, instead of 401.
    Only for a server that nobody beyond this machine can reach. Raises SettingsError.
    """
    if settings is None:
        settings = Settings.read(os.environ, {})
    store = open_store(settings)
    service_keys = ServiceKeys(settings.service_key, open_without=open_without_key)
    endpoints = Endpoints(store, service_keys)

    routes = Routes(
        {
            "/sesiones": {"POST": endpoints.create, "PUT": endpoints.update},
            "/sesiones/self": {"GET": None, "HEAD": None},  # in Service's hands
            "/sesiones/logout": {"DELETE": endpoints.logout},
            "/sesiones/logoutAll": {"DELETE": endpoints.logout_all},
        }
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"check": store.check}  # for the fast lane (lane.py)
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


def open_store(settings: Settings) -> SessionStore:
    """The store that the settings describe; no I/O."""
    return SessionStore(
        connect(settings.redis_url, settings.redis_timeout),
        key_prefix=settings.key_prefix,
        idle_seconds=settings.idle_seconds,
        max_seconds=settings.max_seconds,
        touch_seconds=settings.touch_seconds,
        max_per_user=settings.max_per_user,
        timeout_seconds=settings.redis_timeout,
    )


async def _problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _unavailable(_: Request, __: Exception) -> Response:
    return unavailable().response()


async def _internal_error(_: Request, __: Exception) -> Response:
    return Problem(500, "Ha ocurrido un error inesperado.").response()
