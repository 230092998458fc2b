"""`sesiones stats`: how many sessions and users there are."""

import json
from argparse import Namespace

from sesiones.cli.connections import open_patient_store
from sesiones.cli.console import counted, date, show, show_progress
from sesiones.cli.doctor import place, warn_if_unused
from sesiones.cli.exits import Exit
from sesiones.settings import Settings
from sesiones.store import SessionStore
from sesiones.store.operators import Survey


async def run(settings: Settings, options: Namespace) -> Exit:
    """Count the sessions. Raises StoreUnavailable."""
    async with open_patient_store(settings) as store:
        counts = await survey(store, settings)
    if options.json:
        members = {
            "users": counts.users,
            "sessions": counts.sessions,
            "active": counts.active,
            "oldest": counts.oldest,
        }
        show(json.dumps(members, separators=(",", ":")))
    else:
        oldest = "none" if counts.oldest is None else date(counts.oldest)
        inactive = counts.sessions - counts.active
        show(
            f"{place(settings)}\n"
            f"users     {counts.users:,}\n"
            f"sessions  {counts.sessions:,}, of them {inactive:,} inactive\n"
            f"oldest    {oldest}"
        )
    return Exit.OK


async def survey(store: SessionStore, settings: Settings, before: int | None = None) -> Survey:
    """The counts of all sessions, with progress on standard error, where there may be a warning
    too. ``before``: as for OperatorTools.survey()."""
    counts = Survey()
    try:
        async for counts in store.operators().survey(before):
            show_progress(counted(counts.keys, "key"))
    finally:
        show_progress("")
    if not counts.keys:
        await warn_if_unused(store, settings)
    return counts
