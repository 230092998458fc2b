"""The store of the service's settings."""

from sesiones.metrics import Metrics
from sesiones.settings import Settings
from sesiones.store import SessionStore


def open_store(settings: Settings, metrics: Metrics | None = None) -> SessionStore:
    """The store that the settings describe; no I/O."""
    return SessionStore.from_url(
        settings.redis_url,
        key_prefix=settings.key_prefix,
        idle_seconds=settings.idle_seconds,
        max_seconds=settings.max_seconds,
        touch_seconds=settings.touch_seconds,
        max_per_user=settings.max_per_user,
        timeout_seconds=settings.redis_timeout,
        wait_replicas=settings.wait_replicas,
        metrics=metrics,
    )
