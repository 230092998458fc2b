"""72 hours of sessions in 5 minutes: what comes goes again, and every one is counted once.

Time runs 864 times as fast: half an hour unused is 2 s and twelve hours at the most are 50 s, in
the whole seconds that Redis's expiries have in this API. Users come at an even rate to nodes that
share a Redis. They log in on some devices, too many at times, use them, change them, log out of
one or of all, or walk away; a few never stop until the longest life is over. Every answer is
judged by what the user knows; Redis's own events tell how each session really ended.
"""

import asyncio
import random
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import uvloop

from scripts.chaos import Bar
from scripts.chaos.watch import Watch, counted, rise
from sesiones import tokens
from sesiones.metrics import ENDED
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store import SessionStore
from sesiones.store.tombstones import TOMBSTONE_TTL_SECONDS
from tests.harness.arrivals import Arrivals
from tests.harness.redis_server import RedisServer

NODES = 3
IDLE_SECONDS, MAX_SECONDS = 2, 50  # 1,800 and 43,200 s, 864 times as fast
MAX_PER_USER = 5

RATE, SECONDS = 250, 300
"""Visits a second, and for how long after the warm-up: 72 hours, 864 times as fast."""
SHORT_RATE, SHORT_SECONDS = 200, 0.5
WARM_UP_SECONDS = max(MAX_SECONDS, TOMBSTONE_TTL_SECONDS) + 10
"""Until those who stay for the longest life come and go evenly, and so does what nodes remember."""
STAYING = 0.01
"""The share of visits that last for the longest life."""
USES, SHORT_USES = 5, 1
"""Of a visit, at the most."""
RESTING = 1000
"""Users who come back some seconds later, in turn."""
GONE_SECONDS = 10
"""How long Redis may take to notice what has expired."""
FLAT = 0.02
IDS_ROOM = 1 << 19
"""Taken at once: what grew while the memory is watched would be taken for a leak."""


@dataclass
class _Device:
    """A session as its user knows it. ``ended``: nothing may bring it back; ``doubtful``: the
    limit may have ended it."""

    sesion: Sesion
    ended: bool = False
    doubtful: bool = False

    def may_live(self, moment: float) -> bool:
        return not self.ended and moment < self.sesion.Fecha_Expiracion

    def must_live(self, moment: float) -> bool:
        return self.may_live(moment) and not self.doubtful


@dataclass
class _User:
    number: int
    devices: list[_Device] = field(default_factory=list)


class Churn:
    """The load on the stores, and what it has seen. ``staying``: the share of visits that last
    for the longest life; ``uses``: of any other visit, at the most."""

    def __init__(
        self, stores: list[SessionStore], *, staying: float, uses: int, seed: int = 7
    ) -> None:
        self.wrong: Counter[str] = Counter()
        self.answers = 0
        self.ended: Counter[str] = Counter()
        """Acknowledged, by the reason."""
        self.created = 0
        self._ids = array("q", bytes(8 * IDS_ROOM))
        self.latest = 0
        """When the last of them expires."""
        self._staying, self._uses = staying, uses
        self._stores = stores
        self._random = random.Random(seed)
        self._resting: deque[_User] = deque()
        self._users = 0

    @property
    def ids(self) -> "array[int]":
        """Each ID_Sesion that was acknowledged."""
        return self._ids[: self.created]

    async def run(self, rate: float, seconds: float, label: str) -> None:
        """Visits begin for that long; waits for the end of all."""
        async with asyncio.TaskGroup() as visits:
            async for _ in Arrivals(rate, seconds, label, self._random):
                visits.create_task(self._visit())

    async def fill_buckets(self) -> None:
        """A session in every bucket, whose counters stay for good."""
        users = {tokens.user_bucket(number): number for number in range(100_000)}.values()
        for first in range(0, len(users), 64):
            group = [*users][first : first + 64]
            await asyncio.gather(*(self._create(_User(number)) for number in group))
        self._users = 100_000

    async def _visit(self) -> None:
        if len(self._resting) > RESTING:
            user = self._resting.popleft()
        else:
            self._users += 1
            user = _User(self._users)
        with suppress(StoreUnavailable):  # counted already
            if self._random.random() < self._staying:
                await self._stay(user)
            else:
                await self._use_some(user)
            if self._random.random() < 0.7:
                self._resting.append(user)

    async def _stay(self, user: _User) -> None:
        """To the last second of the longest life."""
        device = await self._create(user)
        while not device.ended:
            await asyncio.sleep(self._random.uniform(0.5, 1))
            await self._check(device)

    async def _use_some(self, user: _User) -> None:
        # Those of the last visit first: most have expired since.
        for device in user.devices:
            await self._check(device)
        user.devices = [device for device in user.devices if not device.ended]
        devices = self._random.choices((1, 2, 3, MAX_PER_USER + 2), (60, 25, 12, 3))[0]
        for _ in range(devices):
            await self._create(user)
        for _ in range(self._random.randint(0, self._uses)):
            await asyncio.sleep(self._random.uniform(0.05, 0.9))
            device = self._random.choice(user.devices)
            await (self._check if self._random.random() < 0.8 else self._change)(device)
        ending = self._random.choice((self._log_out, self._log_out_all, None))
        if ending:
            await ending(user)
            for device in user.devices:
                await self._check(device)

    async def _create(self, user: _User) -> _Device:
        asked = time.time()
        sesion = await self._answer(self._any().create(user.number, "Firefox"))
        if sum(device.may_live(asked) for device in user.devices) >= MAX_PER_USER:
            for device in user.devices:
                device.doubtful = True
        if self.created == len(self._ids):
            self._ids.extend(self._ids)
        self._ids[self.created] = sesion.ID_Sesion
        self.created += 1
        user.devices.append(device := _Device(sesion))
        self._seen(device, sesion)
        return device

    async def _check(self, device: _Device) -> None:
        known, asked = device.sesion, time.time()
        found = await self._answer(self._any().find(known.Token_Sesion))
        if found is None:
            lives = device.must_live(time.time()) and known.Estado_Sesion == 1
            self._expect(not lives, "a live session was refused")
            # An inactive one alone may come back.
            device.ended = device.ended or known.Estado_Sesion == 1
            return
        self._expect(not device.ended, "an ended session was accepted")
        self._expect(device.ended or device.may_live(asked), "an expired session was accepted")
        self._expect(known.Estado_Sesion == 1, "an inactive session was accepted")
        self._seen(device, found)

    async def _change(self, device: _Device) -> None:
        """Rename it, let it live longer, or lock it or unlock it."""
        known, asked = device.sesion, time.time()
        given = self._random.choice(
            (
                known._replace(Dispositivo=self._random.choice(("Chrome", "Safari"))),
                known._replace(
                    Fecha_Expiracion=min(
                        known.Fecha_Expiracion + 1, known.Fecha_Inicio + MAX_SECONDS
                    )
                ),
                known._replace(Estado_Sesion=1 - known.Estado_Sesion),
            )
        )
        updated = await self._answer(self._any().update(given))
        if updated is None:
            self._expect(not device.must_live(time.time()), "a live session was not updated")
            device.ended = True
        elif not isinstance(updated, Sesion):
            self._expect(False, f"an update was refused: {updated}")
        else:
            self._expect(device.may_live(asked), "a session was updated after its end")
            changed = "Dispositivo", "Estado_Sesion"
            same = all(getattr(updated, name) == getattr(given, name) for name in changed)
            self._expect(same, "an update was not made")
            device.sesion = given
            self._seen(device, updated)

    async def _log_out(self, user: _User) -> None:
        """Of one of the devices, from the newest."""
        designated = self._random.choice(user.devices)
        caller, token = user.devices[-1], designated.sesion.Token_Sesion
        await self._end("logout", self._any().end, caller, token, [designated])

    async def _log_out_all(self, user: _User) -> None:
        caller = user.devices[-1]
        token = caller.sesion.Token_Sesion
        await self._end("logout_all", self._any().end_all, caller, token, user.devices)

    async def _end(
        self,
        reason: str,
        end: Callable[[str, str], Awaitable[Any]],
        caller: _Device,
        designated: str,
        devices: list[_Device],
    ) -> None:
        asked, known = time.time(), caller.sesion
        most = sum(device.may_live(asked) for device in devices)
        ended = await self._answer(end(known.Token_Sesion, designated))
        answered = time.time()
        if not isinstance(ended, int):
            lives = caller.must_live(answered) and known.Estado_Sesion == 1
            self._expect(not lives, f"a {reason} was refused")
            return
        least = sum(device.must_live(answered) for device in devices)
        self._expect(least <= ended <= most, f"a {reason} ended too few or too many")
        self.ended[reason] += ended
        for device in devices:
            device.ended = True

    def _seen(self, device: _Device, sesion: Sesion) -> None:
        """An answer about a live one: nothing has changed but what time changes."""
        known = device.sesion
        moved = known._replace(
            Ultima_Actividad=sesion.Ultima_Actividad, Fecha_Expiracion=sesion.Fecha_Expiracion
        )
        self._expect(moved == sesion, "another session was the answer")
        last = known.Fecha_Inicio + MAX_SECONDS
        self._expect(sesion.Fecha_Expiracion <= last, "a session may outlive the longest life")
        self.latest = max(self.latest, sesion.Fecha_Expiracion)
        device.sesion = sesion

    def _any(self) -> SessionStore:
        return self._random.choice(self._stores)

    async def _answer(self, asked: Awaitable[Any]) -> Any:
        self.answers += 1
        try:
            return await asked
        except StoreUnavailable as error:
            self.wrong[f"unavailable: {error}"] += 1
            raise

    def _expect(self, right: bool, otherwise: str) -> None:
        if not right:
            self.wrong[otherwise] += 1


def play(short: bool) -> Iterator[Bar]:
    yield from uvloop.run(_play(short))


async def _play(short: bool) -> list[Bar]:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(notify_keyspace_events="Egx"))
        opened = [
            SessionStore.from_url(
                server.url,
                idle_seconds=IDLE_SECONDS,
                max_seconds=MAX_SECONDS,
                max_per_user=MAX_PER_USER,
                timeout_seconds=5,
            )
            for _ in range(NODES + 1)
        ]
        *stores, auditor = [await stack.enter_async_context(store) for store in opened]
        watch = Watch(server, auditor)
        stack.push_async_callback(watch.aclose)
        await watch.subscribe()
        rate, seconds, warm_up = (
            (SHORT_RATE, SHORT_SECONDS, 0.0) if short else (RATE, SECONDS, WARM_UP_SECONDS)
        )
        churn = Churn(stores, staying=0 if short else STAYING, uses=SHORT_USES if short else USES)
        if not short:
            await churn.fill_buckets()
        since = time.monotonic() + warm_up
        async with asyncio.TaskGroup() as watching:
            listening = watching.create_task(watch.listen())
            auditing = watching.create_task(watch.audit())
            watching.create_task(watch.sample(since, since + seconds))
            await churn.run(rate, warm_up + seconds, "churn: visits")
            left = await watch.left(churn.latest + GONE_SECONDS)
            gone_after = time.time() - churn.latest
            auditing.cancel()
            await watch.redis.publish("end", "")
            await listening
        counters = await watch.counters()
    return [
        *_bars(churn, watch, counters, counted(stores)),
        Bar(
            f"{GONE_SECONDS} s after the last has expired nothing is left but the counters",
            f"{left} keys, {max(gone_after, 0):.1f} s after it",
            not left,
        ),
        *([] if short else _flat(watch)),
    ]


def _bars(
    churn: Churn, watch: Watch, counters: dict[int, int], metrics: Counter[str]
) -> Iterator[Bar]:
    wrong = ", ".join(f"{what}: {times}" for what, times in churn.wrong.items())
    yield Bar(
        "no answer that what came before rules out",
        f"{wrong or 'none'}, of {churn.answers:,} answers",
        not churn.wrong,
    )
    faults = ", ".join(f"{what}: {times}" for what, times in watch.faults.items())
    yield Bar(
        "at no time an orphan, a session outside its index or a key without its expiry",
        f"{faults or 'none'} in {watch.looks} looks at {watch.keys:,} keys",
        not watch.faults,
    )
    ids = sorted(churn.ids)
    last = {ID_Sesion % 4096: ID_Sesion // 4096 for ID_Sesion in ids}
    yield Bar(
        "each ID_Sesion once, and each bucket's counter is the last that was acknowledged",
        f"{len(set(ids)):,} of {churn.created:,} differ; "
        f"{sum(last.get(bucket) == n for bucket, n in counters.items()):,} of {len(counters):,} "
        "counters",
        len(set(ids)) == churn.created and last == counters,
    )
    gone = watch.gone
    ended = {name: metrics[name] for name in ENDED.values if metrics[name]}
    yield Bar(
        "the metrics are exact: every session created, and how it ended",
        f"{metrics['created']:,} created; "
        + "".join(f"{name} {number:,}, " for name, number in ended.items())
        + f"expired {gone['expired']:,} by Redis's events, "
        f"{metrics['created'] - sum(ended.values()):,} by the metrics",
        metrics["created"] == churn.created == gone["del"] + gone["expired"]
        and sum(ended.values()) == gone["del"]
        and {name: ended.get(name, 0) for name in churn.ended} == churn.ended,
    )


def _flat(watch: Watch) -> Iterator[Bar]:
    for name, samples in ("Redis's used_memory", watch.memory), ("the process's RSS", watch.rss):
        values = [value for _, value in samples]
        yield Bar(
            f"{name} stays flat within {FLAT:.0%} from the first steady sample to the last",
            f"{rise(samples):+.2%} on the line through {len(samples)} samples of "
            f"{min(values) / 1e6:.2f} to {max(values) / 1e6:.2f} MB",
            abs(rise(samples)) <= FLAT,
        )
