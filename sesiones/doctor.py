"""`sesiones doctor`: what is wrong with a deployment, and what to do about it."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from redis.exceptions import NoPermissionError, RedisError

from sesiones.logs import escaped
from sesiones.redis_client import Commands, Execute
from sesiones.settings import Settings
from sesiones.store import SessionStore, StoreUnavailable

PINGS = 20
PERMISSION_ADVICE = "Allow it: docs/operate.md has a user for the service and for doctor."
SHOWN_FAULTS = 20
COUNTERS_MAX = 4096
"""The keys of ours that never expire: a counter a bucket."""

Level = Literal["ok", "warning", "error"]
Info = dict[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what is there, and what to do where that is not well."""

    level: Level
    subject: str
    text: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


async def examine(commands: Commands, settings: Settings) -> AsyncIterator[Finding]:
    """Every master in turn. Whatever Redis's permissions or absence keep from being looked at is
    a finding too."""
    try:
        masters = await commands.masters()
    except (RedisError, OSError, TimeoutError) as error:
        yield _unreachable(error)
        return
    for name, execute in masters.items():
        where = f"{name}: " if len(masters) > 1 else ""
        async for finding in _examine_master(execute, settings):
            yield Finding(finding.level, where + finding.subject, finding.text, finding.advice)


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


async def examine_keys(store: SessionStore, progress: Callable[[int], None]) -> Finding:
    """--deep: every key; ``progress`` is told how many have been looked at."""
    keys = 0
    found: list[str] = []
    try:
        async for count, faults in store.audit():
            keys += count
            found += [f"{escaped(key)}: {what}" for key, what in faults]
            progress(keys)
    except StoreUnavailable as error:
        advice = PERMISSION_ADVICE if "no permissions" in str(error) else "Try again."
        return Finding("error", "keys", f"not all could be looked at: {error}", advice)
    if not found:
        return Finding("ok", "keys", f"{keys:,} looked at: each is as it should be")
    shown = "\n".join(found[:SHOWN_FAULTS])
    more = f"\nand {len(found) - SHOWN_FAULTS:,} more" if len(found) > SHOWN_FAULTS else ""
    return Finding(
        "error",
        "keys",
        f"{len(found):,} faults in {keys:,} keys:\n{shown}{more}",
        "No script of the service leaves such keys: find out who else writes here. A session with "
        "a fault can be deleted; its user logs in again.",
    )


def _unreachable(error: Exception) -> Finding:
    if isinstance(error, NoPermissionError):
        return Finding("error", "permissions", str(error), PERMISSION_ADVICE)
    return Finding(
        "error",
        "connection",
        f"Redis cannot be asked: {error or type(error).__name__}",
        "Check SESIONES_REDIS_URL, that the server runs, its password and the network.",
    )


async def _examine_master(execute: Execute, settings: Settings) -> AsyncIterator[Finding]:
    try:
        yield await _latency(execute, settings.redis_timeout * 1000)
        yield await _clock(execute)
        yield await _user(execute)
    except (RedisError, OSError, TimeoutError) as error:
        yield _unreachable(error)
        return
    try:
        text: bytes = await execute("INFO")
    except RedisError as error:
        advice = "Allow it (`+info`) and run again: versions, memory and disk are told there."
        yield Finding("warning", "INFO", f"refused: {error}", advice)
        return
    info = dict(
        line.split(":", 1)
        for line in text.decode(errors="replace").splitlines()
        if ":" in line and not line.startswith("#")
    )
    for look in _version, _role, _eviction, _memory, _persistence, _expiries:
        yield look(info)
    if info.get("cluster_enabled") == "1" and not settings.redis_url.startswith("redis+cluster:"):
        advice = "Only some users' keys are there: SESIONES_REDIS_URL=redis+cluster://host:port,..."
        yield Finding("error", "cluster", "the server is one node of a Cluster", advice)
    yield await _listpack(execute)
    if settings.wait_replicas:
        yield await _replicas(execute, settings.wait_replicas)


async def _latency(execute: Execute, allowed_ms: float) -> Finding:
    pings_ms = []
    for _ in range(PINGS):
        begun = time.monotonic()
        await execute("TIME")  # which the service may call in any case
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
    """May it do what the service never does?"""
    try:
        name = (await execute("ACL", "WHOAMI")).decode(errors="replace")
        may = await execute("ACL", "DRYRUN", name, "FLUSHALL") == b"OK"
    except RedisError:
        return Finding("ok", "permissions", "not known: the Redis user may not ask (ACL)")
    if not may:
        return Finding("ok", "permissions", f"the user {name} may not FLUSHALL")
    return Finding(
        "warning",
        "permissions",
        f"the user {name} may do everything, FLUSHALL too",
        "Give the service an ACL user of its own: docs/operate.md has one.",
    )


def _version(info: Info) -> Finding:
    name, version, oldest = "Redis", info.get("redis_version", "0"), (7, 0)
    if "valkey_version" in info:
        name, version, oldest = "Valkey", info["valkey_version"], (7, 2)
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts >= oldest:
        return Finding("ok", "version", f"{name} {version}")
    return Finding("error", "version", f"{name} {version}", "Redis 7.0+ or Valkey 7.2+ is needed.")


def _role(info: Info) -> Finding:
    if info.get("role") == "master":
        return Finding("ok", "role", f"master, {info.get('connected_slaves', 0)} replicas")
    advice = "Nobody is authenticated from a replica: point SESIONES_REDIS_URL at the master."
    return Finding("error", "role", info.get("role", "unknown"), advice)


def _eviction(info: Info) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    evicted = int(info.get("evicted_keys", 0))
    if policy == "noeviction" and not evicted:
        return Finding("ok", "eviction", policy)
    text = f"maxmemory-policy {policy}, {evicted:,} keys evicted since the start"
    if policy == "noeviction":
        advice = "An evicted session is a silent logout: that has happened, under another policy."
        return Finding("warning", "eviction", text, advice)
    advice = "An evicted session is a silent logout: CONFIG SET maxmemory-policy noeviction."
    return Finding("error", "eviction", text, advice)


def _memory(info: Info) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    total = int(info.get("total_system_memory", 0))
    advice = "Give Redis more memory, or shorten SESIONES_IDLE_SECONDS: when it is full, nobody "
    advice += "can log in."
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
    """A glance at the whole server: --deep knows ours from others'."""
    without = 0
    for name, value in info.items():
        if name.startswith("db") and name[2:].isdigit():
            counts = dict(part.split("=") for part in value.split(","))
            without += int(counts["keys"]) - int(counts["expires"])
    text = f"{without:,} keys without one, of them at most {COUNTERS_MAX:,} are counters"
    if without <= COUNTERS_MAX:
        return Finding("ok", "expiries", f"{without:,} keys without one; counters have none")
    advice = "Is the server shared? Else --deep says which keys they are."
    return Finding("warning", "expiries", text, advice)


async def _replicas(execute: Execute, wanted: int) -> Finding:
    """Of a connection that has written nothing, WAIT counts those that are connected."""
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
    if value >= 2048:
        return Finding("ok", subject, str(value))
    advice = f"A session with a long device takes three times the memory: set {subject} 2048."
    return Finding("warning", subject, str(value), advice)
