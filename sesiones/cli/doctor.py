"""`sesiones doctor`: what is wrong with a deployment, and what to do about it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal
from urllib.parse import urlsplit

from redis.connection import parse_url
from redis.exceptions import NoPermissionError, RedisError

from sesiones.cli.console import counted
from sesiones.logs import escaped
from sesiones.redis_client import Commands, Execute
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings
from sesiones.store import SessionStore
from sesiones.tasks import MALFORMED_REPLY_ERRORS

PINGS = 20
PERMISSION_ADVICE = "Allow it: docs/operate.md has a user for the service and for doctor."
NOTHING_ADVICE = (
    "Unless the service is new: check SESIONES_KEY_PREFIX and the database of SESIONES_REDIS_URL."
)
SHOWN_FAULTS = 20
LISTPACK_BYTES = 2200
"""What redis.conf has: the longest device and its session's numbers."""
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


def place(settings: Settings) -> str:
    """Where in Redis the sessions are: a typing error here looks like a service without any."""
    parts = urlsplit(settings.redis_url)
    if parts.scheme == "redis+cluster":
        database = 0
    elif parts.scheme == "redis+sentinel":
        database = int(parts.path.lstrip("/").partition("/")[2] or 0)
    else:
        database = parse_url(settings.redis_url).get("db", 0)  # type: ignore[no-untyped-call]
    return f"prefix {settings.key_prefix}, database {database}"


async def examine(commands: Commands, settings: Settings) -> AsyncIterator[Finding]:
    """Every Sentinel, then every master in turn. Whatever Redis's permissions or absence keep from
    being looked at is a finding too."""
    for finding in await examine_sentinels(commands, settings):
        yield finding
    try:
        masters = await commands.masters()
    except (RedisError, OSError, TimeoutError) as error:
        yield _unreachable(error)
        return
    for name, execute in masters.items():
        where = f"{name}: " if len(masters) > 1 else ""
        async for finding in _examine_master(execute, settings):
            yield Finding(finding.level, where + finding.subject, finding.text, finding.advice)


async def evictions(commands: Commands) -> AsyncIterator[Finding]:
    """That a master evicts keys, or has, as far as it tells."""
    try:
        for execute in (await commands.masters()).values():
            finding = _eviction(await _info(execute))
            if finding.level != "ok":
                yield finding
    except (RedisError, OSError, TimeoutError):
        return  # not allowed, or whatever else is asked will say it


async def examine_prefix(store: SessionStore, settings: Settings) -> Finding:
    """Whether there is anything of ours, at all."""
    where = place(settings)
    try:
        was_used = await store.was_used()
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


def _unreachable(error: Exception) -> Finding:
    if isinstance(error, NoPermissionError):
        return Finding("error", "permissions", str(error), PERMISSION_ADVICE)
    return Finding(
        "error",
        "connection",
        f"Redis cannot be asked: {str(error) or type(error).__name__}",
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
        info = await _info(execute)
    except RedisError as error:
        advice = "Allow it (`+info`) and run again: versions, memory and disk are told there."
        yield Finding("warning", "INFO", f"refused: {error}", advice)
        return
    for look in _version, _role, _eviction, _memory, _persistence, _expiries:
        yield look(info)
    if info.get("cluster_enabled") == "1" and not settings.redis_url.startswith("redis+cluster:"):
        advice = "Only some users' keys are there: SESIONES_REDIS_URL=redis+cluster://host:port,..."
        yield Finding("error", "cluster", "the server is one node of a Cluster", advice)
    yield await _listpack(execute)
    if settings.wait_replicas:
        yield await _replicas(execute, settings.wait_replicas)


async def _info(execute: Execute) -> Info:
    text: bytes = await execute("INFO")
    return dict(
        line.split(":", 1)
        for line in text.decode(errors="replace").splitlines()
        if ":" in line and not line.startswith("#")
    )


async def examine_sentinels(commands: Commands, settings: Settings) -> list[Finding]:
    """What each Sentinel of the URL says of the master, and whether they agree."""
    sentinels = await commands.sentinels()
    name = urlsplit(settings.redis_url).path.strip("/").partition("/")[0]
    views = await asyncio.gather(*(_view(execute, name) for execute in sentinels.values()))
    masters = Counter(view["master"] for view in views if isinstance(view, dict))
    named = masters.most_common(1)[0][0] if masters else ""
    return [
        _sentinel(f"sentinel {address}", name, view, named, len(sentinels))
        for address, view in zip(sentinels, views, strict=True)
    ]


async def _view(execute: Execute, name: str) -> Info | str:
    """A Sentinel's description of the master, or why there is none."""
    try:
        for fields in await execute("SENTINEL", "MASTERS"):
            texts = [field.decode(errors="replace") for field in fields]
            info = dict(zip(texts[::2], texts[1::2], strict=True))
            if info["name"] == name:
                return info | {"master": f"{info['ip']}:{info['port']}"}
    except (RedisError, OSError, TimeoutError) as error:
        return f"it cannot be asked: {str(error) or type(error).__name__}"
    except MALFORMED_REPLY_ERRORS:
        return "what answers is no Sentinel"
    return f"it knows no master {name}"


def _sentinel(subject: str, name: str, view: Info | str, named: str, in_url: int) -> Finding:
    if isinstance(view, str):
        advice = "Check its address in SESIONES_REDIS_URL, that it runs, its password and network."
        return Finding("error", subject, view, advice)
    known, quorum = int(view.get("num-other-sentinels", 0)) + 1, int(view.get("quorum", 0))
    text = f"master {view['master']}, quorum {quorum} of {counted(known, 'Sentinel')}"
    if view["master"] != named:
        advice = f"Most name {named}. If this lasts: SENTINEL RESET {name} there, and its network."
        return Finding("error", subject, text, advice)
    if "down" in view.get("flags", ""):
        advice = "Sentinel takes the master for down: wait for the failover, look at its log."
        return Finding("error", subject, f"{text}, {view['flags']}", advice)
    if quorum > known:
        advice = f"No failover can begin: start more Sentinels, or SENTINEL SET {name} quorum."
        return Finding("error", subject, text, advice)
    if known > in_url:
        advice = f"Name all in SESIONES_REDIS_URL, which has {in_url}: a majority of those decides."
        return Finding("warning", subject, text, advice)
    return Finding("ok", subject, text)


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
        return Finding("ok", "permissions", "not all: the Redis user may not ask (ACL) what it may")
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
        return Finding(
            "ok", "role", f"master, {counted(int(info.get('connected_slaves', 0)), 'replica')}"
        )
    advice = "No session is checked on a replica: point SESIONES_REDIS_URL at the master."
    return Finding("error", "role", info.get("role", "unknown"), advice)


def _eviction(info: Info) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    evicted = int(info.get("evicted_keys", 0))
    if policy == "noeviction" and not evicted:
        return Finding("ok", "eviction", policy)
    text = f"maxmemory-policy {policy}, {counted(evicted, 'key')} evicted since the start"
    if policy == "noeviction":
        advice = (
            "That happened under another policy. An evicted session is a silent logout, and an "
        )
        advice += (
            "evicted index hides its user's sessions from logoutAll: `sesiones doctor --deep`."
        )
        return Finding("warning", "eviction", text, advice)
    advice = (
        "CONFIG SET maxmemory-policy noeviction. An evicted session is a silent logout, and an "
    )
    advice += "evicted index hides its user's sessions from logoutAll."
    return Finding("error", "eviction", text, advice)


def _memory(info: Info) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    total = int(info.get("total_system_memory", 0))
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
    """A glance at the whole server: --deep knows ours from others'."""
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
    if value >= LISTPACK_BYTES:
        return Finding("ok", subject, str(value))
    advice = f"A session takes more than twice the memory: set {subject} {LISTPACK_BYTES}."
    return Finding("warning", subject, str(value), advice)
