"""`sesiones users`: the live sessions of one user, for an operator who lists or ends them."""

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from sesiones.cli.connections import commands_of, open_patient_store
from sesiones.cli.console import ConsoleHandler, complain, counted, show
from sesiones.cli.doctor import NOTHING_ADVICE, place
from sesiones.cli.exits import Exit
from sesiones.cli.masters import evictions
from sesiones.cli.moments import date
from sesiones.logs import TEXT_FORMAT, JsonFormatter, TextFormatter, escaped
from sesiones.sesion import UserSession
from sesiones.settings import Settings
from sesiones.store import SessionStore


async def run(settings: Settings, options: Namespace) -> Exit:
    """List or end the sessions. Raises StoreUnavailable."""
    with _events_logged(settings.log_format):
        async with open_patient_store(settings) as store:
            if options.end_all or options.end is not None:
                return await _end(store, settings, options)
            sesiones = await store.sessions(options.ID_Usuario, deep=options.deep)
            await _warn_of_missing(store, settings, options, found=len(sesiones))
    if options.json:
        show(json.dumps([members(sesion) for sesion in sesiones], separators=(",", ":")))
    else:
        found = counted(len(sesiones), "live session")
        title = f"user {options.ID_Usuario}: {found} ({place(settings)})"
        show("\n".join([title, *map(_line, sesiones)]))
    return Exit.OK


async def _end(store: SessionStore, settings: Settings, options: Namespace) -> Exit:
    ended = await store.end_user(options.ID_Usuario, options.end, deep=options.deep)
    await _warn_of_missing(store, settings, options, found=ended)
    if options.json:
        show(json.dumps({"Sesiones_Eliminadas": ended}, separators=(",", ":")))
    else:
        show(f"{counted(ended, 'session')} ended ({place(settings)})")
    return Exit.NO if options.end is not None and not ended else Exit.OK


async def _warn_of_missing(
    store: SessionStore, settings: Settings, options: Namespace, *, found: int
) -> None:
    """Say on standard error why the user may have more sessions than were found."""
    where = place(settings)
    if not found and not await store.was_used():
        complain(f"sesiones: warning: {where}: there is nothing at all. {NOTHING_ADVICE}")
    elif not options.deep:
        async with aclosing(commands_of(settings)) as commands:
            async for finding in evictions(commands):
                complain(
                    f"sesiones: warning: {finding.text}: the user's index may be incomplete. "
                    "--deep looks through every key."
                )
        if not found:
            complain(
                f"sesiones: the index of user {options.ID_Usuario} is missing or names no such "
                "session. Where keys were lost, --deep finds the sessions that it lacks."
            )


@contextmanager
def _events_logged(log_format: str) -> Iterator[None]:
    """Log ended sessions on standard error, in the service's format. Errors are left out, because
    the command ends with its own line about them, and so are slow operations: only a service must
    be fast."""
    handler = ConsoleHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT))
    handler.addFilter(
        lambda record: record.levelno < logging.ERROR and not hasattr(record, "operation")
    )
    logger = logging.getLogger("sesiones")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def members(sesion: UserSession) -> dict[str, Any]:
    """The members of a session in JSON. ``Token_Sesion`` is the token's name in the log."""
    members: dict[str, Any] = {}
    for field, value in sesion._asdict().items():
        if field == "fingerprint":
            members["Token_Sesion"] = f"ses_#{value}"
        elif field != "Actual":  # no session is the operator's own
            members[field] = value
    return members


def _line(sesion: UserSession) -> str:
    moments = sesion.Fecha_Inicio, sesion.Ultima_Actividad, sesion.Fecha_Expiracion
    started, used, expires = map(date, moments)
    state = "active" if sesion.Estado_Sesion else "inactive"
    return (
        f"{sesion.ID_Sesion}  ses_#{sesion.fingerprint}  {state}  started {started}  used {used}  "
        f"expires {expires}  {escaped(sesion.Dispositivo)}"
    )
