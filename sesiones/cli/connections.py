"""How an operator's command reaches Redis: by the service's settings, with a longer timeout."""

from dataclasses import replace

from sesiones.redis_client import Commands, connect
from sesiones.settings import Settings
from sesiones.store import SessionStore
from sesiones.store.from_settings import open_store

TIMEOUT_SECONDS_MIN = 5.0
"""A command reports a slow Redis; it does not fail on it."""


def open_patient_store(settings: Settings) -> SessionStore:
    """The service's store, without a near-cache: a command asks once."""
    return open_store(_patient(settings), actor="command line")


def commands_of(settings: Settings) -> Commands:
    """Redis's own commands, without a store."""
    patient = _patient(settings)
    return connect(patient.redis_url, patient.redis_timeout, patient.redis_ca_file)


def _patient(settings: Settings) -> Settings:
    seconds = max(TIMEOUT_SECONDS_MIN, settings.redis_timeout)
    return replace(settings, redis_timeout=seconds, cache_seconds=0)
