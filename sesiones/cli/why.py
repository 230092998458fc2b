"""`sesiones why`: what is known of a user's sessions or of a token: which live, and when and why
others ended."""

import json
from argparse import Namespace
from typing import Any

from sesiones import tokens
from sesiones.cli.connections import open_patient_store
from sesiones.cli.console import complain, counted, date, read_line, show
from sesiones.cli.doctor import place, warn_if_unused
from sesiones.cli.exits import CommandError, Exit
from sesiones.cli.moments import distance
from sesiones.cli.users import members
from sesiones.logs import escaped
from sesiones.sesion import BOUNDS, UserSession
from sesiones.settings import Settings
from sesiones.store.traces import Trace

EXPIRED = "expired"
REASONS = {
    "logout": "a logout, or a revocation by the backend",
    "logout_all": "a logoutAll",
    "others": "a logoutOthers, or a login with Cerrar_Otras",
    "id": "the user picked it by its ID_Sesion",
    "operator": "the backend or an operator, who need no token",
    "replaced": "a login that replaced it, by Token_Anterior or Sustituye",
    "limit": "a login beyond the limit of the user's sessions",
    "undone": "the login that made it had failed",
    "failover": "it had ended before and was back after a failover",
    "unindexed": "the user's index had lost it: keys were evicted, or Redis's clock jumped ahead",
    EXPIRED: "it had not been used for its window, which is SESIONES_IDLE_SECONDS unless its login "
    "or a PUT gave another, or had reached its maximum life",
}
"""In words, each reason for which a session ends, and its expiry."""
LIVE = "A 401 for a session that is live and active has another cause: see docs/support.md."
INACTIVE = "an inactive session fails every check; a PUT has made it inactive, and can undo that"


async def run(settings: Settings, options: Namespace) -> Exit:
    """Say what is known. Raises StoreUnavailable, and CommandError for a bad argument."""
    whose = _whose(read_line() if options.whose == "-" else options.whose)
    async with open_patient_store(settings) as store:
        live, gone = await store.operators().why(whose, deep=options.deep)
        unused = not live and not gone and await warn_if_unused(store, settings)
    if options.json:
        known = [*map(_live_members, live), *map(_gone_members, gone)]
        show(json.dumps(known, separators=(",", ":")))
    else:
        counts = f"{counted(len(live), 'live session')}, {len(gone)} gone"
        title = f"{_subject(whose)}: {counts} ({place(settings)})"
        show("\n".join([title, *map(_live_line, live), *map(_gone_line, gone)]))
    if unused:
        return Exit.NO
    if not gone and (isinstance(whose, int) or not live):
        _explain(settings, whose, options.deep)
    elif not isinstance(whose, int) and any(each.Estado_Sesion for each in live):
        complain(f"sesiones: {LIVE}")
    return Exit.OK if live or gone else Exit.NO


def _explain(settings: Settings, whose: int | str, deep: bool) -> None:
    """Say on standard error what an answer without sessions that are gone can mean."""
    seconds = settings.why_seconds
    complain(
        f"sesiones: {_subject(whose)}: nothing is known of a session that is gone. There was none; "
        f"or it ended or expired more than {counted(seconds, 'second')} ago "
        "(SESIONES_WHY_SECONDS); or Redis has lost its keys (FLUSHALL, eviction, a failover)."
    )
    if not seconds:
        complain(
            "sesiones: SESIONES_WHY_SECONDS is 0 here. Unless the service has another value, a "
            "session that is gone leaves no trace but the lines of the log."
        )
    elif tokens.is_well_formed(whose) and not deep:
        complain(
            "sesiones: --deep also finds a session that expired and whose user has not been back."
        )


def _whose(text: str) -> int | str:
    """A user, a token, or a fingerprint. Raises CommandError."""
    low, high = BOUNDS["ID_Usuario"]
    if text.isascii() and text.isdigit() and len(text) <= len(str(high)):
        if low <= int(text) <= high:
            return int(text)
    elif tokens.is_well_formed(text):
        return text
    elif (fingerprint := tokens.fingerprint_of_name(text)) is not None:
        return fingerprint
    raise CommandError(
        Exit.USAGE,
        "why takes an ID_Usuario, a token, a token's name in the log (ses_#1a2b3c4d), or - to read "
        "one of them from standard input",
    )


def _subject(whose: int | str) -> str:
    if isinstance(whose, int):
        return f"user {whose}"
    return f"token {tokens.masked(whose) if tokens.is_well_formed(whose) else f'ses_#{whose}'}"


def _live_members(sesion: UserSession) -> dict[str, Any]:
    return {"state": "active" if sesion.Estado_Sesion else "inactive", **members(sesion)}


def _gone_members(trace: Trace) -> dict[str, Any]:
    return {
        "state": "expired" if trace.reason == EXPIRED else "ended",
        "when": trace.when,
        "reason": trace.reason,
        "actor": trace.actor or None,
        "ID_Sesion": trace.ID_Sesion,
        "ID_Usuario": trace.ID_Usuario,
        "Token_Sesion": f"ses_#{trace.fingerprint}",
        "Ultima_Actividad": trace.Ultima_Actividad,
    }


def _live_line(sesion: UserSession) -> str:
    state = "live and active" if sesion.Estado_Sesion else f"live but inactive ({INACTIVE})"
    return (
        f"session {sesion.ID_Sesion} of user {sesion.ID_Usuario}, ses_#{sesion.fingerprint}: "
        f"{state}, last used {_moment(sesion.Ultima_Actividad)}, "
        f"expires {_moment(sesion.Fecha_Expiracion)}, {escaped(sesion.Dispositivo)}"
    )


def _gone_line(trace: Trace) -> str:
    number = "session" if trace.ID_Sesion is None else f"session {trace.ID_Sesion}"
    user = "an unknown user" if trace.ID_Usuario is None else f"user {trace.ID_Usuario}"
    outcome = "expired" if trace.reason == EXPIRED else "ended"
    reason = "" if trace.reason == EXPIRED else f", {trace.reason}"
    used = trace.Ultima_Actividad
    last = "" if used is None else f"; last used {_moment(used)}"
    by = f"; asked for by {escaped(trace.actor)}" if trace.actor else ""
    return (
        f"{number} of {user}, ses_#{trace.fingerprint}: {outcome} {_moment(trace.when)}{reason}: "
        f"{REASONS.get(trace.reason, 'of a newer version')}{last}{by}"
    )


def _moment(moment: int) -> str:
    return f"{date(moment)} ({distance(moment)})"
