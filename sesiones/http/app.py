"""The table of contents of the API: its routes, and what they are made of."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette

from sesiones import paths
from sesiones.http import docs
from sesiones.http.authentication import Authentication
from sesiones.http.credentials import ServiceKeys
from sesiones.http.management import Management
from sesiones.http.operations import Exposition, Health
from sesiones.http.problems import EXCEPTION_HANDLERS
from sesiones.http.repeats import Repeats
from sesiones.http.routes import Routes, Service
from sesiones.http.sessions import Endpoints
from sesiones.http.traffic import Traffic
from sesiones.metrics import Metrics, ProcessSlots
from sesiones.settings import Settings
from sesiones.store.from_settings import open_store
from sesiones.store.near_cache import InvalidationTable


def _routes(
    endpoints: Endpoints, management: Management, exposition: Exposition, health: Health
) -> Routes:
    """The table of routes."""
    return Routes(
        {
            "/sesiones": {
                "GET": management.list_own,
                "HEAD": management.list_own,
                "POST": endpoints.create,
                "PUT": endpoints.update,
            },
            paths.SELF: {"GET": None, "HEAD": None},  # Service answers it
            "/sesiones/logout": {"DELETE": endpoints.logout},
            "/sesiones/logoutAll": {"DELETE": endpoints.logout_all},
            "/sesiones/logoutOthers": {"DELETE": management.end_others},
            "/sesiones/{ID_Sesion}": {"DELETE": management.end_own},
            "/sesiones/usuarios/{ID_Usuario}": {
                "GET": management.list_user,
                "HEAD": management.list_user,
                "DELETE": management.end_user,
            },
            "/sesiones/usuarios/{ID_Usuario}/{ID_Sesion}": {"DELETE": management.end_user},
            "/sesiones/introspeccion": {"POST": management.introspect},
            "/sesiones/revocacion": {"POST": management.revoke},
            "/openapi.json": {"GET": docs.document, "HEAD": docs.document},
            "/docs": {"GET": docs.page, "HEAD": docs.page},
            paths.METRICS: {"GET": exposition.metrics, "HEAD": exposition.metrics},
            paths.LIVE: {"GET": health.live, "HEAD": health.live},
            paths.READY: {"GET": health.ready, "HEAD": health.ready},
            paths.HEALTH: {"GET": health.ready, "HEAD": health.ready},
        }
    )


def create_app(
    settings: Settings | None = None,
    *,
    open_without_key: bool = False,
    slots: ProcessSlots | None = None,
    table: InvalidationTable | None = None,
) -> Starlette:
    """The service as an ASGI application; without settings, those of the environment.

    ``open_without_key``: without a service key POST and PUT are open, instead of answering 401.
    This is only for a server that other machines cannot reach. ``slots`` and ``table``: where the
    workers of a service count together (metrics.py), and tell each other of ended and changed
    sessions (near_cache.py). Raises SettingsError.
    """
    if settings is None:
        settings = Settings.read(os.environ, {})
    store = open_store(settings, Metrics(slots), table)
    service_keys = ServiceKeys(settings.service_key, open_without_key=open_without_key)
    authentication = Authentication(store, service_keys)
    endpoints = Endpoints(store, authentication, settings.policy)
    management = Management(store, authentication)
    traffic = Traffic(store.metrics, access_log=settings.access_log)
    exposition = Exposition(store.metrics)
    health = Health(store)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        cache = store.near_cache()
        checks = {
            "check": store.checker(),
            "check_without_slide": store.checker(slide=False),
            "repeats": None if cache is None else Repeats(cache, store.metrics),
        }
        with exposition.measured():
            # For protocol.py and fast_check.py. A line of the access log has more than the fast
            # check knows, so with that log every request goes through Starlette.
            yield {"traffic": traffic} | ({} if settings.access_log else checks)
        await store.aclose()

    return Service(
        traffic,
        whoami=(paths.SELF, endpoints.whoami),
        verify=(paths.VERIFY, endpoints.verify),
        routes=[_routes(endpoints, management, exposition, health)],
        lifespan=lifespan,
        exception_handlers=EXCEPTION_HANDLERS,
    )
