"""`sesiones users`: the live sessions of one user, or those that have a name of the log, for an
operator who lists or ends them."""

import json
from argparse import Namespace
from contextlib import aclosing
from typing import Any

from sesiones.cli.arguments import ANY
from sesiones.cli.connections import commands_of, open_patient_store
from sesiones.cli.console import complain, counted, date, events_logged, show
from sesiones.cli.doctor import place, warn_if_unused
from sesiones.cli.exits import Exit
from sesiones.cli.masters import evictions
from sesiones.logs import escaped
from sesiones.sesion import StoreUnavailable, UserSession
from sesiones.settings import Settings
from sesiones.store import SessionStore
from sesiones.store.operators import is_outcome_known


async def run(settings: Settings, options: Namespace) -> Exit:
    """List or end the sessions. Raises StoreUnavailable."""
    with events_logged(settings.log_format):
        async with open_patient_store(settings) as store:
            if options.name is not None:
                return await _named(store, settings, options)
            if options.end_all or options.end is not None:
                return await _end(store, settings, options, options.ID_Usuario, options.end)
            sesiones = await store.sessions(options.ID_Usuario, deep=options.deep)
            await _warn_of_missing(
                store, settings, options, options.ID_Usuario, found=len(sesiones)
            )
    _list(sesiones, settings, options, f"user {options.ID_Usuario}")
    return Exit.OK


async def _named(store: SessionStore, settings: Settings, options: Namespace) -> Exit:
    """--name. With --end, exactly one session of the name must be there, or have that ID_Sesion."""
    sesiones = await store.operators().named(options.name)
    if not sesiones:
        await warn_if_unused(store, settings)
    if options.end is None:
        _list(sesiones, settings, options, f"ses_#{options.name}")
        return Exit.OK
    chosen = [each for each in sesiones if options.end in (ANY, each.ID_Sesion)]
    if len(chosen) > 1:
        _list(sesiones, settings, options, f"ses_#{options.name}")
        complain("sesiones: nothing has ended: say which one, with --end ID_SESION")
        return Exit.NO
    if not chosen:
        _ended(0, settings, options)
        return Exit.NO
    ID_Usuario, ID_Sesion = chosen[0].ID_Usuario, chosen[0].ID_Sesion
    assert ID_Usuario is not None
    return await _end(store, settings, options, ID_Usuario, ID_Sesion)


def _list(sesiones: list[UserSession], settings: Settings, options: Namespace, title: str) -> None:
    if options.json:
        show(json.dumps([members(sesion) for sesion in sesiones], separators=(",", ":")))
        return
    found = counted(len(sesiones), "live session")
    lines = [_line(sesion, with_user=options.name is not None) for sesion in sesiones]
    show("\n".join([f"{title}: {found} ({place(settings)})", *lines]))


async def _end(
    store: SessionStore,
    settings: Settings,
    options: Namespace,
    ID_Usuario: int,
    ID_Sesion: int | None,
) -> Exit:
    try:
        ended = await store.end_user(ID_Usuario, ID_Sesion, deep=options.deep)
    except StoreUnavailable as error:
        if is_outcome_known(error):
            raise
        hint = "whether a session has ended is not known: list them, or repeat the command"
        raise StoreUnavailable(f"{error}; {hint}") from error
    await _warn_of_missing(store, settings, options, ID_Usuario, found=ended)
    _ended(ended, settings, options)
    return Exit.NO if ID_Sesion is not None and not ended else Exit.OK


def _ended(count: int, settings: Settings, options: Namespace) -> None:
    if options.json:
        show(json.dumps({"Sesiones_Eliminadas": count}, separators=(",", ":")))
    else:
        show(f"{counted(count, 'session')} ended ({place(settings)})")


async def _warn_of_missing(
    store: SessionStore, settings: Settings, options: Namespace, ID_Usuario: int, *, found: int
) -> None:
    """Say on standard error why the user may have more sessions than were found."""
    if not found and await warn_if_unused(store, settings):
        return
    if not options.deep:
        async with aclosing(commands_of(settings)) as commands:
            async for finding in evictions(commands):
                complain(
                    f"sesiones: warning: {finding.text}: the user's index may be incomplete. "
                    "--deep looks through every key."
                )
        if not found:
            complain(
                f"sesiones: the index of user {ID_Usuario} is missing or names no such "
                "session. Where keys were lost, --deep finds the sessions that it lacks."
            )


def members(sesion: UserSession) -> dict[str, Any]:
    """The members of a session in JSON. ``Token_Sesion`` is the token's name in the log."""
    members: dict[str, Any] = {}
    for field, value in sesion._asdict().items():
        if field == "fingerprint":
            members["Token_Sesion"] = f"ses_#{value}"
        elif field != "Actual":  # no session is the operator's own
            members[field] = value
    return members


def _line(sesion: UserSession, *, with_user: bool) -> str:
    moments = sesion.Fecha_Inicio, sesion.Ultima_Actividad, sesion.Fecha_Expiracion
    started, used, expires = map(date, moments)
    state = "active" if sesion.Estado_Sesion else "inactive"
    user = f"user {sesion.ID_Usuario}  " if with_user else ""
    return (
        f"{user}{sesion.ID_Sesion}  ses_#{sesion.fingerprint}  {state}  "
        f"started {started}  used {used}  expires {expires}  {escaped(sesion.Dispositivo)}"
    )
