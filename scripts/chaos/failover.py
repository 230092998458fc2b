"""What the scenarios share in which a master is lost: their bars, and how these are measured."""

import asyncio
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scripts.chaos import Bar
from tests.harness.redis_server import RedisSentinels, wait_until
from tests.harness.traffic import BACK, LOST, OVERWRITTEN, Traffic, counted, slowest, words

TIMEOUT_SECONDS, SHORT_TIMEOUT_SECONDS = 0.25, 1.0
"""SESIONES_REDIS_TIMEOUT."""
MAY_TAKE_SECONDS = 2 * TIMEOUT_SECONDS
"""Any answer."""
MAY_STOP_SECONDS = 3.0
"""Acknowledged writes, from the kill on."""
MAY_LOSE_SECONDS = 1.0
"""Of what was acknowledged before a kill, where the service waits for no replica."""


def settings(replicas: int, short: bool) -> dict[str, str]:
    """Of the nodes."""
    return {
        "SESIONES_REDIS_TIMEOUT": str(SHORT_TIMEOUT_SECONDS if short else TIMEOUT_SECONDS),
        "SESIONES_WAIT_REPLICAS": str(replicas),
    }


def answered(title: str, traffic: Traffic) -> Bar:
    events = traffic.events
    return Bar(
        f"{title}: every request is answered, within {MAY_TAKE_SECONDS} s",
        f"the slowest in {slowest(events):.2f} s, those who ask being up to {traffic.late:.2f} s "
        f"late themselves; {counted(events)}",
        slowest(events) <= MAY_TAKE_SECONDS and all(event.status for event in events),
    )


def losses(
    title: str,
    replicas: int,
    traffic: Traffic,
    meanwhile: Mapping[str, set[str]],
    killed: Sequence[float],
) -> Iterable[Bar]:
    """``meanwhile``: what was wrong before traffic.verify(); ``killed``: when masters were."""
    lost = meanwhile.get(LOST, set()) | traffic.wrong.pop(LOST, set())
    back = meanwhile.get(BACK, set())
    overwritten = traffic.wrong.pop(OVERWRITTEN, set())
    ages = [min((at - traffic.created_at[token] for at in killed), key=abs) for token in lost]
    known = traffic.known()
    old = "" if replicas else f" {MAY_LOSE_SECONDS:.0f} s or more"
    yield Bar(
        f"{title}: no session lost that was acknowledged{old} before",
        f"{len(ages)} of {known['created']:,} lost",
        not ages if replicas else all(age < MAY_LOSE_SECONDS for age in ages),
    )
    yield Bar(
        f"{title}: no ended session accepted" + (", no PUT lost" if replicas else " in the end"),
        f"{words(traffic.wrong)}; {known['ended']:,} ended, {len(back)} of them back for a "
        f"moment; {len(overwritten)} PUTs lost",
        not traffic.wrong
        and not meanwhile.keys() - {LOST, BACK}
        and not (replicas and (back or overwritten)),
    )


@dataclass(frozen=True)
class Failover:
    """When the master was killed, and when all Sentinels named another, on the monotonic clock."""

    killed: float
    named: float


async def fail_over(redis: RedisSentinels) -> Failover:
    """Kill the master, and start it again when there is another."""
    (master,) = redis.named()
    await asyncio.to_thread(redis.servers[master].stop, signal.SIGKILL)
    killed = time.monotonic()

    def replaced() -> bool:
        return master not in redis.named()

    await asyncio.to_thread(wait_until, replaced, "the Sentinels to name another master", 30)
    named = time.monotonic()
    await asyncio.to_thread(redis.servers[master].start)
    return Failover(killed, named)
