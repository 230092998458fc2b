"""The store of the service's settings."""

from dataclasses import asdict

from sesiones.metrics import Metrics
from sesiones.settings import Settings
from sesiones.store import SessionStore


def open_store(settings: Settings, metrics: Metrics | None = None) -> SessionStore:
    """The store that the settings describe; no I/O."""
    return SessionStore.from_url(
        settings.redis_url,
        key_prefix=settings.key_prefix,
        **asdict(settings.policy),
        timeout_seconds=settings.redis_timeout,
        wait_replicas=settings.wait_replicas,
        metrics=metrics,
    )
