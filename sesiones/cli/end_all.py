"""`sesiones end-all`: every session of every user, or those that began before a moment, for an
operator who ends them."""

import json
import logging
import os
import pwd
import signal
import socket
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from sesiones import redis_url
from sesiones.cli.connections import open_patient_store
from sesiones.cli.console import counted, date, events_logged, show
from sesiones.cli.doctor import place, warn_if_unused
from sesiones.cli.exits import Exit
from sesiones.cli.stats import survey
from sesiones.settings import Settings
from sesiones.store.operators import Ending

logger = logging.getLogger("sesiones.cli")

PROGRESS_SECONDS = 5.0
"""Between two lines about how far it is."""


async def run(settings: Settings, options: Namespace) -> Exit:
    """Count the sessions, or with --yes end them. Raises StoreUnavailable."""
    which = "" if options.before is None else f" that began before {date(options.before)}"
    with events_logged(settings.log_format):
        if options.yes:
            done = await _end(settings, options.before, which)
            members = {"Sesiones_Eliminadas": done.sessions}
            if done.unknown:
                members["Sesiones_Eliminadas_Max"] = done.sessions + done.unknown
            text = _told(done, which, settings)
        else:
            async with open_patient_store(settings) as store:
                count = (await survey(store, settings, options.before)).begun
            members = {"Sesiones": count}
            text = (
                f"{counted(count, 'live session')}{which} ({place(settings)}). Nothing has ended: "
                "--yes ends them."
            )
    show(json.dumps(members, separators=(",", ":")) if options.json else text)
    return Exit.OK


def _told(done: Ending, which: str, settings: Settings) -> str:
    """How many have ended, as far as that is known."""
    count, lost = counted(done.sessions, "session"), ""
    if done.unknown:
        count = f"{done.sessions:,} to {counted(done.sessions + done.unknown, 'session')}"
        lost = ", because Redis's replies about some are missing"
    return f"{count}{which} ended ({place(settings)}){lost}"


async def _end(settings: Settings, before: int | None, which: str) -> Ending:
    """End them, and then log who did so, also when the command fails or is interrupted."""
    done, outcome = Ending(), "interrupted"
    reported = time.monotonic()
    try:
        with _interruptible():
            async with open_patient_store(settings) as store:
                async for _ in store.operators().end_begun(before, done):
                    if time.monotonic() - reported > PROGRESS_SECONDS:
                        reported = time.monotonic()
                        seen = counted(done.keys, "key")
                        logger.info("%s looked at, %d ended", seen, done.sessions)
                if not done.keys:
                    await warn_if_unused(store, settings)
        outcome = "done"
    except Exception as error:
        outcome = f"failed: {error}"
        raise
    finally:
        operator, host = _operator(), socket.gethostname()
        user = redis_url.parse(settings.redis_url).credentials.get("username", "default")
        logger.info(
            "end-all by %s on %s, Redis user %s: %s: %s",
            *(operator, host, user, _told(done, which, settings), outcome),
            extra={
                "event": "end-all",
                "operator": operator,
                "host": host,
                "redis_user": user,
                "before": before,
                "ended": done.sessions,
                "ended_at_most": done.sessions + done.unknown,
                "outcome": outcome,
            },
        )
    return done


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP when a terminal is lost, interrupt the command as Ctrl-C does. A
    signal that is ignored stays so (nohup)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _operator() -> str:
    """Who runs this, by the system's accounts. `sudo` says who became root."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, a number may have no name
        name = str(os.getuid())
    invoker = os.environ.get("SUDO_USER")
    return f"{invoker} (as {name})" if invoker else name
