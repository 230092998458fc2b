"""`sesiones doctor`: the findings about the Sentinels."""

import asyncio
from collections import Counter

from redis.exceptions import RedisError

from sesiones import redis_url
from sesiones.cli.console import counted
from sesiones.cli.findings import Finding
from sesiones.redis_client import Commands, Execute
from sesiones.settings import Settings
from sesiones.tasks import MALFORMED_REPLY_ERRORS

Description = dict[str, str]
"""A Sentinel's fields of a master."""


async def examine_sentinels(commands: Commands, settings: Settings) -> list[Finding]:
    """What each Sentinel of the URL says of the master, and whether the Sentinels agree."""
    sentinels = await commands.sentinels()
    name = redis_url.parse(settings.redis_url).master
    views = await asyncio.gather(*(_describe(execute, name) for execute in sentinels.values()))
    masters = Counter(view["master"] for view in views if isinstance(view, dict))
    named = masters.most_common(1)[0][0] if masters else ""
    return [
        _sentinel(f"sentinel {address}", name, view, named, len(sentinels))
        for address, view in zip(sentinels, views, strict=True)
    ]


async def _describe(execute: Execute, name: str) -> Description | str:
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


def _sentinel(subject: str, name: str, view: Description | str, named: str, in_url: int) -> Finding:
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
