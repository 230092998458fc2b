"""sesiones: a Redis-backed token session store service."""

__version__ = "0.1.0"

from sesiones.sesion import Sesion
from sesiones.store import BadDates, Immutable, Refusal, SessionStore, StoreUnavailable

__all__ = ["BadDates", "Immutable", "Refusal", "Sesion", "SessionStore", "StoreUnavailable"]
