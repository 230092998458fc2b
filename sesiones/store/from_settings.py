"""The store of the service's settings."""

from functools import partial

from sesiones.metrics import Metrics
from sesiones.redis_client import connect
from sesiones.settings import Settings
from sesiones.store import SessionStore
from sesiones.store.near_cache import InvalidationTable


def open_store(
    settings: Settings,
    metrics: Metrics | None = None,
    table: InvalidationTable | None = None,
    actor: str = "service key",
) -> SessionStore:
    """The store that the settings describe; no I/O. ``table``: the one that the processes of a
    service share. ``actor``: as in SessionStore."""
    return SessionStore(
        partial(connect, settings.redis_url, settings.redis_timeout, settings.redis_ca_file),
        settings.policy,
        key_prefix=settings.key_prefix,
        timeout_seconds=settings.redis_timeout,
        wait_replicas=settings.wait_replicas,
        cache_seconds=settings.cache_seconds,
        why_seconds=settings.why_seconds,
        table=table,
        actor=actor,
        metrics=metrics,
    )
