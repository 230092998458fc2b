"""`sesiones doctor`: what the near-cache needs, and whether it has it."""

import asyncio
import time

from redis.exceptions import RedisError

from sesiones.cli.console import counted
from sesiones.cli.findings import Finding, unreachable
from sesiones.redis_client import Commands, Execute
from sesiones.settings import Settings
from sesiones.store.keys import Keys

LEASE_WAIT_SECONDS = 2.0
"""A lease begins within a second; twice that is for a busy machine."""
_MAY = """\
#!lua flags=no-writes
return redis.acl_check_cmd(unpack(ARGV))
"""


async def examine_channel(execute: Execute, settings: Settings) -> Finding:
    """Whether the Redis user may tell the near-caches of other nodes what has ended, and with a
    near-cache whether it may listen. Any user that may EVAL can ask that; nothing is published."""
    channel = Keys(settings.key_prefix).channel
    needed = {"publish": ("PUBLISH", channel, "")}
    if settings.cache_seconds:
        needed["subscribe"] = ("SUBSCRIBE", channel, channel)
    try:
        refused = [
            name for name, command in needed.items() if not await execute("EVAL", _MAY, 0, *command)
        ]
    except RedisError as error:
        return Finding("ok", "channel", f"not known: {error}")
    if not refused:
        return Finding(
            "ok",
            "channel",
            f"the user of SESIONES_REDIS_URL may {' and '.join(needed)} on {channel}",
        )
    text = f"the user of SESIONES_REDIS_URL may not {' nor '.join(refused)} on {channel}"
    advice = f"+publish +subscribe &{channel}: see docs/operate.md, The near-cache."
    if settings.cache_seconds:
        return Finding("error", "channel", text, f"Without it every check asks Redis. Add {advice}")
    return Finding("ok", "channel", text, f"Before any node has a near-cache, add {advice}")


async def examine_near_cache(commands: Commands, settings: Settings) -> Finding:
    """Whether a lease begins on every master, as it must before a node answers from memory.
    ``commands``: without an open connection."""
    missing, reason = 0, "none has begun yet"
    changed = asyncio.Event()

    def on_lease(difference: int, _: bool, why: str) -> None:
        nonlocal missing, reason
        missing, reason = missing + difference, why or reason
        changed.set()

    begun = time.monotonic()
    commands.subscribe(Keys(settings.key_prefix).channel, lambda _: None, on_lease)
    try:
        masters = await commands.masters()
        await asyncio.gather(*(execute("TIME") for execute in masters.values()))
    except (RedisError, OSError) as error:
        return unreachable(error)
    try:
        async with asyncio.timeout(LEASE_WAIT_SECONDS):
            while missing:
                changed.clear()
                await changed.wait()
    except TimeoutError:
        return Finding(
            "error",
            "near-cache",
            f"no lease on {missing} of {counted(len(masters), 'master')}: {reason}",
            "Checks of their sessions ask Redis. A subscription needs the channel's permissions, a "
            "connection that Redis accepts, and the server that commands go to: no proxy between.",
        )
    milliseconds = (time.monotonic() - begun) * 1000
    cache_seconds, touch_seconds = settings.cache_seconds, settings.touch_seconds
    text = f"a lease on {counted(len(masters), 'master')} within {milliseconds:.0f} ms; "
    if not touch_seconds:
        text += "but no answer is kept, because every check slides its session"
    else:
        text += f"an answer from memory is at most {min(cache_seconds, touch_seconds)} s old"
    if touch_seconds >= cache_seconds:
        return Finding("ok", "near-cache", text)
    advice = f"Set SESIONES_TOUCH_SECONDS to {cache_seconds} too, so that fewer checks ask Redis."
    return Finding("ok" if touch_seconds else "warning", "near-cache", text, advice)
