"""sesiones: a Redis-backed token session store service."""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from sesiones.sesion import (
        BadDates,
        Immutable,
        LimitReached,
        Login,
        Refusal,
        Sesion,
        StoreUnavailable,
        UserSession,
    )
    from sesiones.store import SessionStore
    from sesiones.store.sync import SyncSessionStore

__all__ = [
    "BadDates",
    "Immutable",
    "LimitReached",
    "Login",
    "Refusal",
    "Sesion",
    "SessionStore",
    "StoreUnavailable",
    "SyncSessionStore",
    "UserSession",
]


def __getattr__(name: str) -> Any:
    # The store is imported when it is first used: the service must handle signals before it imports
    # other modules (signals.py).
    if name == "SessionStore":
        from sesiones.store import SessionStore

        return SessionStore
    if name == "SyncSessionStore":
        from sesiones.store.sync import SyncSessionStore

        return SyncSessionStore
    if name in __all__:
        from sesiones import sesion

        return getattr(sesion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
