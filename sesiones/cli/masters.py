"""`sesiones doctor`: the findings about one master."""

import time
from collections.abc import AsyncIterator
from statistics import median
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

from sesiones.cli.console import counted
from sesiones.cli.findings import PERMISSION_ADVICE, Finding, Level, unreachable
from sesiones.cli.near_cache import examine_channel
from sesiones.redis_client import Commands, Execute
from sesiones.redis_client.info import Info
from sesiones.redis_url import parse
from sesiones.settings import Settings

PINGS = 20
LISTPACK_BYTES = 2200
"""The value in redis.conf: the longest device and the numbers of its session."""
OLDEST = {"Redis": (7, 0), "Valkey": (7, 2)}
COUNTERS_MAX = 4096
"""The service's keys without an expiry: one counter for each bucket."""


async def examine_master(execute: Execute, settings: Settings) -> AsyncIterator[Finding]:
    """Every finding about one master."""
    try:
        yield await _latency(execute, settings.redis_timeout * 1000)
        yield await _clock(execute)
        yield await _user(execute)
        yield await examine_channel(execute, settings)
    except (RedisError, OSError, TimeoutError) as error:
        yield unreachable(error)
        return
    try:
        info = Info.parse(await execute("INFO"))
    except RedisError as error:
        advice = "Allow it (`+info`) and run again: versions, memory and disk are told there."
        yield Finding("warning", "INFO", f"refused: {error}", advice)
        return
    for look in _version, _role, _eviction, _memory, _persistence, _expiries:
        yield look(info)
    if info.get("cluster_enabled") == "1" and not parse(settings.redis_url).is_cluster:
        advice = "Only some users' keys are there: SESIONES_REDIS_URL=redis+cluster://host:port,..."
        yield Finding("error", "cluster", "the server is one node of a Cluster", advice)
    yield await _listpack(execute)
    if settings.wait_replicas:
        yield await _replicas(execute, settings.wait_replicas)


async def evictions(commands: Commands) -> AsyncIterator[Finding]:
    """A finding for each master that evicts keys or has evicted some. A master that cannot be asked
    has no finding."""
    try:
        for execute in (await commands.masters()).values():
            finding = _eviction(Info.parse(await execute("INFO")))
            if finding.level != "ok":
                yield finding
    except (RedisError, OSError, TimeoutError):
        return  # the command's other questions report the failure


async def _latency(execute: Execute, allowed_ms: float) -> Finding:
    pings_ms = []
    for _ in range(PINGS):
        begun = time.monotonic()
        await execute("TIME")  # the service's own Redis user may call it
        pings_ms.append((time.monotonic() - begun) * 1000)
    slowest = max(pings_ms)
    text = f"median {median(pings_ms):.2f} ms, slowest of {PINGS} {slowest:.2f} ms"
    if slowest < allowed_ms / 2:
        return Finding("ok", "latency", text)
    return Finding(
        "warning",
        "latency",
        f"{text}, of the {allowed_ms:.0f} ms of SESIONES_REDIS_TIMEOUT",
        "Look for a slow network, a machine without spare CPU, SLOWLOG; or raise the timeout.",
    )


async def _clock(execute: Execute) -> Finding:
    begun = time.time()
    seconds, microseconds = await execute("TIME")
    offset = int(seconds) + int(microseconds) / 1e6 - (begun + time.time()) / 2
    text = f"Redis's is {abs(offset):.2f} s {'ahead of' if offset > 0 else 'behind'} this machine's"
    if abs(offset) < 1:
        return Finding("ok", "clock", text)
    advice = "All time is Redis's: clients that compare its dates with theirs err. Run NTP on both."
    return Finding("warning", "clock", text, advice)


async def _user(execute: Execute) -> Finding:
    """Whether the Redis user may run a command that the service never sends."""
    try:
        name = (await execute("ACL", "WHOAMI")).decode(errors="replace")
        may = await execute("ACL", "DRYRUN", name, "FLUSHALL") == b"OK"
    except RedisError:
        return Finding("ok", "permissions", "not all: the Redis user may not ask (ACL) what it may")
    if not may:
        return Finding("ok", "permissions", f"the user {name} may not FLUSHALL")
    return Finding(
        "warning",
        "permissions",
        f"the user {name} may do everything, FLUSHALL too",
        "Give the service an ACL user of its own: docs/acl.conf has one.",
    )


def _version(info: Info) -> Finding:
    name, version = info.product
    text = f"{name} {version or 'of unknown version'}"
    parts = tuple(int(part) for part in (version or "").split(".")[:2] if part.isdigit())
    if parts >= OLDEST[name]:
        return Finding("ok", "version", text)
    return Finding("error", "version", text, "Redis 7.0+ or Valkey 7.2+ is needed.")


def _role(info: Info) -> Finding:
    if info.get("role") == "master":
        return Finding(
            "ok", "role", f"master, {counted(info.number('connected_slaves'), 'replica')}"
        )
    advice = "No session is checked on a replica: point SESIONES_REDIS_URL at the master."
    return Finding("error", "role", info.get("role", "unknown"), advice)


def _eviction(info: Info) -> Finding:
    policy, evicted = info.eviction_policy, info.number("evicted_keys")
    if policy == "noeviction" and not evicted:
        return Finding("ok", "eviction", policy)
    text = f"{counted(evicted, 'key')} evicted since the start"
    harm = (
        "An evicted session is a silent logout, and an evicted index hides its user's sessions "
        "from logoutAll"
    )
    if policy == "noeviction":
        advice = f"That happened under another policy. {harm}: `sesiones doctor --deep`."
        return Finding("warning", "eviction", f"maxmemory-policy {policy}, {text}", advice)
    if policy is None:
        text = f"the server does not tell its maxmemory-policy, {text}"
        return Finding("warning", "eviction", text, f"It must be noeviction. {harm}.")
    advice = f"CONFIG SET maxmemory-policy noeviction. {harm}."
    return Finding("error", "eviction", f"maxmemory-policy {policy}, {text}", advice)


def _memory(info: Info) -> Finding:
    used, limit = info.number("used_memory"), info.number("maxmemory")
    total = info.number("total_system_memory")
    advice = "Give Redis more memory, or shorten SESIONES_IDLE_SECONDS: when it is full, no "
    advice += "session can be made."
    if not limit:
        share = used / total if total else 0.0
        text = f"{used / 2**20:.0f} MiB, {share:.0%} of the machine's; no maxmemory"
        if share < 0.5:
            return Finding("ok", "memory", text)
        return Finding("warning", "memory", text, f"Set maxmemory: see redis.conf. {advice}")
    text = f"{used / 2**20:.0f} of {limit / 2**20:.0f} MiB of maxmemory, {used / limit:.0%}"
    level: Level = "ok" if used < 0.8 * limit else "warning" if used < 0.95 * limit else "error"
    return Finding(level, "memory", text, "" if level == "ok" else advice)


def _persistence(info: Info) -> Finding:
    subject = "persistence"
    if info.get("aof_enabled") != "1":
        advice = "Sessions made since the last snapshot, or all, are lost when Redis restarts: "
        return Finding("warning", subject, "no append-only file", advice + "appendonly yes.")
    writes = info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")
    if writes != ("ok", "ok"):
        text = f"append-only file: last write {writes[0]}, last rewrite {writes[1]}"
        return Finding("error", subject, text, "Look at Redis's log and the disk's free space.")
    return Finding("ok", subject, "append-only file, written well")


def _expiries(info: Info) -> Finding:
    """The keys without an expiry on the whole server, whose keys may not all be the service's: only
    --deep tells them apart."""
    without = 0
    for name, value in info.items():
        if name.startswith("db") and name[2:].isdigit():
            counts = dict(part.split("=") for part in value.split(","))
            without += int(counts["keys"]) - int(counts["expires"])
    text = f"{counted(without, 'key')} without one, of them at most {COUNTERS_MAX:,} are counters"
    if without <= COUNTERS_MAX:
        return Finding(
            "ok", "expiries", f"{counted(without, 'key')} without one; counters have none"
        )
    advice = "Is the server shared? Else --deep says which keys they are."
    return Finding("warning", "expiries", text, advice)


async def _replicas(execute: Execute, wanted: int) -> Finding:
    """Connected replicas: WAIT counts them on a connection that has written nothing."""
    advice = "Every write is a 503: connect more replicas, or lower SESIONES_WAIT_REPLICAS."
    try:
        count: int = await execute("WAIT", wanted, 100)
    except NoPermissionError as error:
        return Finding("error", "replicas", str(error), PERMISSION_ADVICE)
    except RedisError as error:
        return Finding("error", "replicas", str(error), advice)
    text = f"{count} connected; a write waits for {wanted}"
    if count >= wanted:
        return Finding("ok", "replicas", text)
    return Finding("error", "replicas", text, advice)


async def _listpack(execute: Execute) -> Finding:
    subject = "hash-max-listpack-value"
    try:
        reply: Any = await execute("CONFIG", "GET", subject)
    except RedisError:
        return Finding("ok", subject, "not known: the Redis user may not CONFIG GET")
    if not reply:
        return Finding("ok", subject, "not known: the server has no such setting, or hides it")
    value = int(reply[1])
    if value >= LISTPACK_BYTES:
        return Finding("ok", subject, str(value))
    advice = f"A session takes more than twice the memory: set {subject} {LISTPACK_BYTES}."
    return Finding("warning", subject, str(value), advice)
