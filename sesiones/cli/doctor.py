"""`sesiones doctor`: what is wrong with a deployment, and what to do about it."""

import json
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from redis.exceptions import RedisError

from sesiones import redis_url
from sesiones.cli.connections import commands_of, open_patient_store
from sesiones.cli.console import complain, counted, show, show_progress
from sesiones.cli.exits import Exit
from sesiones.cli.findings import PERMISSION_ADVICE, Finding, unreachable
from sesiones.cli.masters import examine_master
from sesiones.cli.near_cache import examine_near_cache
from sesiones.cli.sentinels import examine_sentinels
from sesiones.logs import escaped
from sesiones.redis_client import Commands
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings
from sesiones.store import SessionStore

NOTHING_ADVICE = (
    "Unless the service is new: check SESIONES_KEY_PREFIX and the database of SESIONES_REDIS_URL."
)
SHOWN_FAULTS = 20


async def run(settings: Settings, options: Namespace) -> Exit:
    """Examine the deployment and print each finding at once, or all of them as JSON."""
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not options.json:
            show(finding.to_text())

    def progress(keys: int) -> None:
        show_progress(counted(keys, "key"))

    async with aclosing(commands_of(settings)) as commands:
        async for finding in examine(commands, settings):
            report(finding)
    if not any(finding.subject == "connection" for finding in findings):
        if settings.cache_seconds:
            async with aclosing(commands_of(settings)) as commands:
                report(await examine_near_cache(commands, settings))
        async with open_patient_store(settings) as store:
            report(await examine_prefix(store, settings))
            report(await examine_store(store))
            if options.deep:
                finding = await examine_keys(store, settings, progress)
                show_progress("")
                report(finding)
    if options.json:
        show(json.dumps([each.to_dict() for each in findings]))
    return Exit.NO if any(finding.level == "error" for finding in findings) else Exit.OK


def place(settings: Settings) -> str:
    """Where the sessions are in Redis. With a mistyped prefix or database a service looks empty."""
    database = redis_url.parse(settings.redis_url).database
    return f"prefix {settings.key_prefix}, database {database}"


async def warn_if_unused(store: SessionStore, settings: Settings) -> bool:
    """Warn when there never was a session there. Return whether that is so."""
    unused = not await store.operators().was_used()
    if unused:
        complain(f"sesiones: warning: {place(settings)}: there is nothing at all. {NOTHING_ADVICE}")
    return unused


async def examine(commands: Commands, settings: Settings) -> AsyncIterator[Finding]:
    """Every Sentinel, then every master in turn. A question that Redis does not answer, for lack of
    a permission or of a connection, is a finding too."""
    for finding in await examine_sentinels(commands, settings):
        yield finding
    try:
        masters = await commands.masters()
    except (RedisError, OSError, TimeoutError) as error:
        yield unreachable(error)
        return
    for name, execute in masters.items():
        where = f"{name}: " if len(masters) > 1 else ""
        async for finding in examine_master(execute, settings):
            yield Finding(finding.level, where + finding.subject, finding.text, finding.advice)


async def examine_prefix(store: SessionStore, settings: Settings) -> Finding:
    """Whether the service has any key there."""
    where = place(settings)
    try:
        was_used = await store.operators().was_used()
    except StoreUnavailable as error:
        advice = PERMISSION_ADVICE if "no permissions" in str(error) else "Try again."
        return Finding(
            "warning", "prefix", f"{where}: it is not known what is there: {error}", advice
        )
    if was_used:
        return Finding("ok", "prefix", f"{where}: sessions have been made there")
    return Finding("warning", "prefix", f"{where}: there is nothing at all", NOTHING_ADVICE)


async def examine_store(store: SessionStore) -> Finding:
    """Whether the service could serve."""
    try:
        await store.probe(1)
    except StoreUnavailable as error:
        return Finding(
            "error",
            "writes",
            f"Redis refuses them: {error}",
            "Until it takes them no session can be made; see docs/operate.md, Health.",
        )
    return Finding("ok", "writes", "Redis takes them, and has the scripts")


async def examine_keys(
    store: SessionStore, settings: Settings, progress: Callable[[int], None]
) -> Finding:
    """--deep: every key. ``progress`` is called with the number of keys examined so far."""
    keys = 0
    found: list[str] = []
    try:
        async for count, faults in store.operators().audit():
            keys += count
            found += [f"{escaped(key)}: {what}" for key, what in faults]
            progress(keys)
    except StoreUnavailable as error:
        advice = PERMISSION_ADVICE if "no permissions" in str(error) else "Try again."
        return Finding("error", "keys", f"not all could be looked at: {error}", advice)
    if not keys:
        return Finding("warning", "keys", f"{place(settings)}: none", NOTHING_ADVICE)
    if not found:
        return Finding("ok", "keys", f"{keys:,} looked at: each is as it should be")
    shown = "\n".join(found[:SHOWN_FAULTS])
    more = f"\nand {len(found) - SHOWN_FAULTS:,} more" if len(found) > SHOWN_FAULTS else ""
    return Finding(
        "error",
        "keys",
        f"{counted(len(found), 'fault')} in {counted(keys, 'key')}:\n{shown}{more}",
        "No script of the service leaves such keys: look for evictions and for other writers. A "
        "session that is not in its user's index outlives a logoutAll: `sesiones users ID_USUARIO "
        "--end-all --deep` ends it, and so does the next check that would slide it. Any other "
        "session with a fault can be deleted; its user logs in again.",
    )
