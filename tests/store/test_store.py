"""The store on a real server: what each operation answers, and what it leaves in Redis.

To the second, with a clock that the test moves: test_clock.py. Concurrent: test_hazards.py.
"""

import asyncio
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from sesiones import tokens
from sesiones.sesion import INT_MAX, BadDates, Immutable, Refusal, Sesion, StoreUnavailable
from sesiones.store import SessionStore
from sesiones.store.checks import CheckQueue
from tests.harness.metrics import counted
from tests.harness.records import (
    NEIGHBOUR,
    NUMBERS,
    age,
    base,
    counter_key,
    digest,
    index,
    index_key,
    indexed,
    keys,
    lua,
    now,
    record,
    session_key,
    state,
    write_record,
)
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store

pytestmark = pytest.mark.anyio

Opener = Callable[..., SessionStore]

IDLE, MAX = 1800, 43_200


def client(server: RedisServer) -> Redis:
    return Redis(unix_socket_path=str(server.socket))


def data_directory(redis: Redis) -> Path:
    return Path(str(redis.config_get("dir")["dir"]))


def append_only_file(redis: Redis) -> bytes:
    return b"".join(file.read_bytes() for file in data_directory(redis).rglob("*.aof"))


def fail_to_save(redis: Redis) -> None:
    """Redis then refuses writes: MISCONF."""
    (data_directory(redis) / "taken").mkdir()  # in the snapshot's place
    redis.bgsave()
    while redis.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.01)


def wait_for(redis: Redis, moment: int) -> None:
    while now(redis) < moment:
        time.sleep(0.01)


@pytest.fixture
async def open_more(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Opener]:
    """Opens more stores, of other settings; on the server of the run, or another."""
    stores: list[SessionStore] = []

    def open_one(url: str = redis_server.url, **settings: Any) -> SessionStore:
        stores.append(open_store(url, **settings))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that the test may break."""
    with RedisServer(save="3600 1", dbfilename="taken") as server:
        yield server
        with client(server) as redis:
            redis.config_set("save", "")  # a server that cannot save would not stop


@pytest.fixture
def cluster_node() -> Iterator[Redis]:
    """A Cluster of one node, which has every slot."""
    with ExitStack() as stack:
        ports = []
        for _ in range(2):
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            ports.append(str(taken.getsockname()[1]))
    with (
        RedisServer(cluster_enabled="yes", port=ports[0], cluster_port=ports[1]) as server,
        client(server) as redis,
    ):
        redis.cluster("addslotsrange", 0, 16383)
        while redis.cluster("info")["cluster_state"] != "ok":
            time.sleep(0.05)
        yield redis


class TestCreate:
    async def test_what_it_returns_and_writes(self, redis: Redis, store: SessionStore) -> None:
        before = now(redis)
        sesion = await store.create(7, "portátil de Ana 🔑")
        token = sesion.Token_Sesion
        assert before <= sesion.Fecha_Inicio <= now(redis)
        assert sesion == Sesion(
            ID_Sesion=int(redis.get("sesiones:{eQ}:n") or 0) * 4096 + tokens.bucket_number("eQ"),
            ID_Usuario=7,
            Token_Sesion=token,
            Fecha_Inicio=sesion.Fecha_Inicio,
            Fecha_Expiracion=sesion.Fecha_Inicio + IDLE,
            Estado_Sesion=1,
            Ultima_Actividad=sesion.Fecha_Inicio,
            Dispositivo="portátil de Ana 🔑",
        )
        assert tokens.bucket(token) == "eQ"
        assert state(redis) == {
            f"sesiones:{{eQ}}:h:{digest(token)}": (
                {
                    b"1": (
                        f"{sesion.Fecha_Inicio} 0 1800 1 {sesion.ID_Sesion} 7:portátil de Ana 🔑"
                    ).encode()
                },
                sesion.Fecha_Expiracion,
            ),
            "sesiones:{eQ}:u:7": (
                [(digest(token).encode(), sesion.Fecha_Expiracion)],
                sesion.Fecha_Expiracion,
            ),
            "sesiones:{eQ}:n": (b"%d" % (sesion.ID_Sesion // 4096), -1),
        }

    async def test_ids(self, redis: Redis, store: SessionStore) -> None:
        """n * 4096 + bucket, with the bucket's n: users of one bucket share it."""
        bucket = tokens.bucket_number("eQ")
        for user in (7, 8):
            redis.set(counter_key(user), 2**40)  # ahead of the time
        made = [(await store.create(user, "d")).ID_Sesion for user in (7, 7, NEIGHBOUR, 8, 7)]
        other = tokens.bucket_number(tokens.user_bucket(8))
        assert made == [
            (2**40 + n) * 4096 + b
            for n, b in [(1, bucket), (2, bucket), (3, bucket), (1, other), (4, bucket)]
        ]
        assert redis.get(counter_key(7)) == b"%d" % (2**40 + 4)

    async def test_the_first_id_counts_from_the_time(
        self, redis: Redis, store: SessionStore
    ) -> None:
        """256 a second since 2026."""

        def floor() -> float:
            seconds, micros = redis.time()
            return 256 * (seconds + micros / 1e6 - datetime(2026, 1, 1, tzinfo=UTC).timestamp())

        before = floor()
        number = (await store.create(7, "d")).ID_Sesion // 4096
        assert int(before) <= number <= floor()

    @pytest.mark.parametrize("lost", ["all", "some"])
    async def test_no_id_repeats_after_lost_writes(
        self, redis: Redis, store: SessionStore, lost: str
    ) -> None:
        """A counter that is gone, or that is back where it was, does not count from there."""
        ids = []
        for _ in range(10):
            before = redis.get(counter_key(7))
            ids.append((await store.create(7, "d")).ID_Sesion)
            ids.append((await store.create(NEIGHBOUR, "d")).ID_Sesion)
            if lost == "all" or before is None:
                redis.delete(counter_key(7))
            else:
                redis.set(counter_key(7), before)
            await asyncio.sleep(0.01)
        assert ids == sorted(set(ids))

    async def test_ids_grow_while_the_counter_is_ahead_of_the_time(
        self, redis: Redis, store: SessionStore
    ) -> None:
        """As after a clock that was ahead, or more than 256 sessions a second."""
        first = (await store.create(7, "d")).ID_Sesion
        ahead = redis.incrby(counter_key(7), 256 * 7200)
        for n in 1, 2, 3:
            sesion = await store.create(7, "d")
            assert sesion.ID_Sesion == (ahead + n) * 4096 + first % 4096

    async def test_ids_are_not_used_again(self, redis: Redis, store: SessionStore) -> None:
        first = await store.create(7, "d")
        await store.end_all(first.Token_Sesion, first.Token_Sesion)
        assert (await store.create(7, "d")).ID_Sesion > first.ID_Sesion

    async def test_integers_up_to_2_53(self, redis: Redis, open_more: Opener) -> None:
        """Exact: Lua's own formatting rounds from 10^14 on."""
        store = open_more(touch_seconds=60)
        bucket = tokens.user_bucket(INT_MAX)
        redis.set(counter_key(INT_MAX), 2**41 - 2)
        sesion = await store.create(INT_MAX, "d")
        assert sesion.ID_Sesion == (2**41 - 1) * 4096 + tokens.bucket_number(bucket)
        assert sesion.ID_Sesion > 2**53 - 4096
        assert sesion.ID_Usuario == INT_MAX
        assert await store.find(sesion.Token_Sesion) == sesion
        assert await store.update(sesion) == sesion
        assert redis.exists(f"sesiones:{{{bucket}}}:u:9007199254740991")
        assert await store.end_all(sesion.Token_Sesion, "") == 1

    def test_again_for_the_same_key(self, redis: Redis) -> None:
        """The second try of a create whose reply was lost changes nothing, and ends nobody."""
        for number in range(2):
            names = [f"{base(7)}h:{number}", index_key(7), counter_key(7)]
            made = redis.eval(lua("create"), 3, *names, 1937, 7, "d", IDLE, MAX, 2)
        before = state(redis)
        assert len(before) == 4
        for number in (1, 1, 0):
            names = [f"{base(7)}h:{number}", index_key(7), counter_key(7)]
            again = redis.eval(lua("create"), 3, *names, 1937, 7, "d", IDLE, MAX, 2)
            assert number == 0 or again == made
        assert state(redis) == before

    async def test_every_key_of_a_user_is_in_one_slot(
        self, redis: Redis, store: SessionStore
    ) -> None:
        for user in (7, 7, NEIGHBOUR):
            await store.create(user, "d")
        assert len(keys(redis)) == 6
        assert {key_slot(key.encode()) for key in keys(redis)} == {key_slot(b"eQ")}

    async def test_prefix(self, open_more: Opener, redis: Redis) -> None:
        """Stores of two prefixes do not see each other."""
        one, other = (open_more(key_prefix=name, touch_seconds=60) for name in ("a.b:c-d_e", "x"))
        sesion = await one.create(7, "d")
        assert {key.partition("{")[0] for key in keys(redis)} == {"a.b:c-d_e:"}
        assert await one.find(sesion.Token_Sesion) == sesion
        assert await other.find(sesion.Token_Sesion) is None

    async def test_any_device_stays_in_a_listpack(self, redis: Redis, open_more: Opener) -> None:
        store = open_more(touch_seconds=60)
        sesion = await store.create(7, "🔑" * 512)
        assert redis.object("encoding", session_key(sesion.Token_Sesion)) == b"listpack"
        assert await store.find(sesion.Token_Sesion) == sesion

    async def test_devices_come_back_as_they_were(self, open_more: Opener) -> None:
        store = open_more(touch_seconds=60)
        for device in ["ñ", "'; return 1 --", "%.0f %s\\n", '"', "\u2028", "e\u0301", "1", "false"]:
            sesion = await store.create(7, device)
            assert sesion.Dispositivo == device
            assert await store.find(sesion.Token_Sesion) == sesion


class TestLimit:
    async def test_ends_the_one_that_expires_first(self, open_more: Opener, redis: Redis) -> None:
        """Not the oldest, nor the least used."""
        store = open_more(max_per_user=3)
        made = [await store.create(7, name) for name in ("uno", "dos", "tres")]
        neighbour = await store.create(NEIGHBOUR, "ajena")
        second = await store.update(made[1]._replace(Fecha_Expiracion=made[1].Fecha_Inicio + 60))
        new = await store.create(7, "cuatro")
        assert await store.find(made[1].Token_Sesion) is None
        assert isinstance(second, Sesion)
        assert not redis.exists(session_key(second.Token_Sesion))
        assert index(redis, 7) == indexed(made[0], made[2], new)
        assert await store.find(neighbour.Token_Sesion) is not None

    async def test_inactive_ones_count(self, open_more: Opener, redis: Redis) -> None:
        store = open_more(max_per_user=1)
        inactive = await store.create(7, "uno")
        await store.update(inactive._replace(Estado_Sesion=0))
        await store.create(7, "dos")
        assert await store.update(inactive) is None

    async def test_lowered(self, open_more: Opener, redis: Redis) -> None:
        """By far more than unpack() could take."""
        store = open_more(max_per_user=10_000)
        first = await store.create(7, "primera")
        expiry = first.Fecha_Expiracion
        many = {f"{i:022}": expiry - 1 for i in range(9_000)}
        redis.zadd(index_key(7), many)
        with redis.pipeline(transaction=False) as pipeline:
            for name in many:
                pipeline.hset(f"{base(7)}h:{name}", "1", "1 1 1 1 1 7:d")
                pipeline.expireat(f"{base(7)}h:{name}", expiry - 1)
            pipeline.execute()
        lower = open_more(max_per_user=2)
        new = await lower.create(7, "nueva")
        assert index(redis, 7) == indexed(first, new)
        assert len(redis.keys("*:h:*")) == 2

    async def test_the_dead_do_not_count(self, open_more: Opener, redis: Redis) -> None:
        """What has expired is in the index until the next write, which drops it first."""
        store = open_more(max_per_user=2)
        dead, kept = await store.create(7, "muerta"), await store.create(7, "viva")
        age(redis, dead, IDLE + 1)
        assert len(index(redis, 7)) == 2
        new = await store.create(7, "nueva")
        assert index(redis, 7) == indexed(kept, new)
        assert await store.find(kept.Token_Sesion) is not None


class TestFind:
    async def test_a_bug_is_no_answer(
        self,
        store: SessionStore,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async def bug(*_: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(CheckQueue, "_read", bug)
        with pytest.raises(StoreUnavailable):
            await store.find(tokens.make(7))
        assert caplog.records[0].exc_info

    async def test_nobody(self, redis: Redis, store: SessionStore) -> None:
        assert await store.find(tokens.make(7)) is None
        assert state(redis) == {}

    async def test_not_by_another_token(self, store: SessionStore) -> None:
        token = (await store.create(7, "d")).Token_Sesion
        other = token[:-1] + ("A" if token[-1] != "A" else "E")
        assert await store.find(other) is None
        assert await store.find(token.replace("ses_eQ", "ses_eR")) is None

    async def test_writes_nothing_when_not_due(self, redis: Redis, open_more: Opener) -> None:
        store = open_more(touch_seconds=60)
        sesion = await store.create(7, "d")
        before = state(redis)
        assert await store.find(sesion.Token_Sesion) == sesion
        assert state(redis) == before

    @pytest.mark.parametrize(
        ("touch", "window", "seconds", "slides"),
        [
            (1, 1800, 0, False),
            (1, 1800, 1, True),
            (0, 1800, 0, True),
            (60, 1800, 59, False),
            (60, 1800, 60, True),
            (60, 11, 4, False),
            (60, 11, 5, True),  # window // 2
            (60, 3, 0, False),
            (60, 3, 1, True),
            (60, 1, 0, False),
            (60, 1, 1, True),
        ],
    )
    async def test_slides_when_due(
        self,
        open_more: Opener,
        redis: Redis,
        touch: int,
        window: int,
        seconds: int,
        slides: bool,
    ) -> None:
        store = open_more(touch_seconds=touch)
        moment = -1
        while now(redis) != moment:  # a slide a second late is no proof
            sesion = age(redis, await store.create(7, "d"), seconds)
            moment = sesion.Ultima_Actividad + seconds
            # Early, so that a slide shows at age 0 too.
            stored = sesion._replace(Fecha_Expiracion=moment + 100)
            key = session_key(sesion.Token_Sesion)
            write_record(redis, key, ventana=window)
            redis.expireat(key, stored.Fecha_Expiracion)
            redis.delete(index_key(7))
            redis.zadd(index_key(7), indexed(stored))
            redis.expireat(index_key(7), stored.Fecha_Expiracion)
            found = await store.find(sesion.Token_Sesion)
        expected = stored
        if slides:
            expected = stored._replace(
                Ultima_Actividad=moment, Fecha_Expiracion=max(moment + 100, moment + window)
            )
        assert found == expected
        assert index(redis, 7) == indexed(expected)
        assert redis.expiretime(key) == expected.Fecha_Expiracion
        assert redis.expiretime(index_key(7)) == expected.Fecha_Expiracion
        stored_fields = record(redis, key)
        assert stored_fields["actividad"] == str(expected.Ultima_Actividad)
        assert stored_fields["ventana"] == str(window)

    async def test_capped_at_max(self, redis: Redis, store: SessionStore) -> None:
        sesion = age(redis, await store.create(7, "d"), 1000)
        key = session_key(sesion.Token_Sesion)
        begun = sesion.Ultima_Actividad - MAX + 2000
        write_record(redis, key, inicio=begun, uso=sesion.Ultima_Actividad - begun)
        found = await store.find(sesion.Token_Sesion)
        assert found is not None
        assert found.Fecha_Inicio + MAX == found.Fecha_Expiracion == sesion.Ultima_Actividad + 2000

    async def test_never_shortens(self, redis: Redis, store: SessionStore) -> None:
        sesion = age(redis, await store.create(7, "d"), 100)
        key = session_key(sesion.Token_Sesion)
        far = sesion.Fecha_Inicio + 2 * MAX
        redis.expireat(key, far)
        found = await store.find(sesion.Token_Sesion)
        assert found is not None
        assert found.Ultima_Actividad >= sesion.Ultima_Actividad + 100
        assert found.Fecha_Expiracion == far
        assert redis.expiretime(key) == far
        assert redis.expiretime(index_key(7)) == far

    async def test_inactive(
        self, redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Not seen, not slid, and no error either."""
        sesion = await store.create(7, "d")
        await store.update(sesion._replace(Estado_Sesion=0))
        age(redis, sesion, 100)
        before = state(redis)
        assert await store.find(sesion.Token_Sesion) is None
        assert state(redis) == before
        assert caplog.records == []

    async def test_keeps_unknown_fields(self, redis: Redis, store: SessionStore) -> None:
        sesion = await store.create(7, "d")
        key = session_key(sesion.Token_Sesion)
        extra: dict[Any, Any] = {b"d:tema": b"oscuro", b"otro": b"\xff\x00"}
        redis.hset(key, mapping=extra)
        sesion = age(redis, sesion, 10)
        found = await store.find(sesion.Token_Sesion)
        assert found is not None
        assert found.Ultima_Actividad > sesion.Ultima_Actividad
        await store.update(found._replace(Dispositivo="otro"))
        fields = redis.hgetall(key)
        assert len(fields) == 3
        assert fields.items() >= extra.items()

    async def test_slide_prunes_the_index(self, redis: Redis, store: SessionStore) -> None:
        sesion = age(redis, await store.create(7, "d"), 10)
        redis.zadd(index_key(7), {"muerta": now(redis) - 5})
        found = await store.find(sesion.Token_Sesion)
        assert index(redis, 7) == indexed(found)
        assert found is not None
        assert redis.expiretime(index_key(7)) == found.Fecha_Expiracion

    async def test_many_at_once(self, redis: Redis, store: SessionStore) -> None:
        """More than one call may carry, of many buckets, with others in between."""
        made = [await store.create(user, "d") for user in range(400)]
        for sesion in made[::3]:
            await store.end(sesion.Token_Sesion, sesion.Token_Sesion)
        for sesion in made[1::3]:
            age(redis, sesion, 50)
        found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for sesion in made))
        assert found[::3] == [None] * 134
        for sesion, seen in zip(made, found, strict=True):
            assert seen is None or seen.Token_Sesion == sesion.Token_Sesion
            assert seen is None or seen.ID_Usuario == sesion.ID_Usuario
        assert None not in found[1::3] + found[2::3]

    async def test_the_same_one_many_times_at_once(self, redis: Redis, store: SessionStore) -> None:
        sesion = age(redis, await store.create(7, "d"), 10)
        found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for _ in range(500)))
        assert None not in found
        assert index(redis, 7) == indexed(max(seen for seen in found if seen is not None))


class TestUpdate:
    async def test_changes_what_may_change(self, redis: Redis, store: SessionStore) -> None:
        sesion = age(redis, await store.create(7, "d"), 100)
        given = sesion._replace(
            Fecha_Expiracion=sesion.Fecha_Inicio + 500,
            Estado_Sesion=0,
            Ultima_Actividad=sesion.Fecha_Inicio + 50,
            Dispositivo="móvil",
        )
        assert await store.update(given) == given
        key = session_key(sesion.Token_Sesion)
        assert record(redis, key) == {
            "actividad": str(given.Ultima_Actividad),
            "uso": "50",
            "ventana": "450",
            "estado": "0",
            "id": str(sesion.ID_Sesion),
            "usuario": "7",
            "inicio": str(sesion.Fecha_Inicio),
            "dispositivo": "móvil",
        }
        assert redis.expiretime(key) == given.Fecha_Expiracion
        assert index(redis, 7) == indexed(given)
        assert redis.expiretime(index_key(7)) == given.Fecha_Expiracion

    async def test_of_what_self_returned(self, redis: Redis, store: SessionStore) -> None:
        """The law: it changes nothing."""
        sesion = age(redis, await store.create(7, "d"), 100)
        found = await store.find(sesion.Token_Sesion)
        assert found is not None
        age(redis, found, 0)
        before = state(redis)
        assert await store.update(found) == found
        assert state(redis) == before

    async def test_inactive_and_back(self, store: SessionStore) -> None:
        sesion = await store.create(7, "d")
        inactive = sesion._replace(Estado_Sesion=0)
        assert await store.update(inactive) == inactive
        assert await store.find(sesion.Token_Sesion) is None
        assert await store.update(inactive) == inactive
        assert await store.update(sesion) == sesion
        assert await store.find(sesion.Token_Sesion) is not None

    async def test_nobody(self, redis: Redis, store: SessionStore) -> None:
        sesion = await store.create(7, "d")
        before = state(redis)
        for token in (tokens.make(7), "", "ses_", sesion.Token_Sesion + "\n", "ñ" * 49, "*"):
            assert await store.update(sesion._replace(Token_Sesion=token)) is None
        assert state(redis) == before
        await store.end(sesion.Token_Sesion, sesion.Token_Sesion)
        assert await store.update(sesion) is None
        assert keys(redis) == ["sesiones:{eQ}:n"]

    @pytest.mark.parametrize(
        "fields",
        [
            ("ID_Sesion",),
            ("ID_Usuario",),
            ("Fecha_Inicio",),
            ("ID_Sesion", "Fecha_Inicio"),
            ("ID_Sesion", "ID_Usuario", "Fecha_Inicio"),
        ],
    )
    async def test_immutable(
        self, redis: Redis, store: SessionStore, fields: tuple[str, ...]
    ) -> None:
        """Named all at once, before the dates, and nothing is written."""
        sesion = await store.create(7, "d")
        before = state(redis)
        changes: Any = {field: getattr(sesion, field) + 1 for field in fields}
        given = sesion._replace(Fecha_Expiracion=0, Dispositivo="otro", **changes)
        assert await store.update(given) == Immutable(fields)
        assert state(redis) == before

    @pytest.mark.parametrize(
        ("expiracion", "actividad", "reason"),
        [
            (500, 500, "window"),
            (500, 501, "window"),
            (0, INT_MAX, "window"),
            (MAX + 1, 0, "lifetime"),
            (INT_MAX, 0, "lifetime"),
            (150, 100, "past"),
            (51, 50, "past"),
        ],
    )
    async def test_bad_dates(
        self, redis: Redis, store: SessionStore, expiracion: int, actividad: int, reason: str
    ) -> None:
        sesion = age(redis, await store.create(7, "d"), 200)
        before = state(redis)
        updated = await store.update(
            sesion._replace(
                Fecha_Expiracion=min(INT_MAX, sesion.Fecha_Inicio + expiracion),
                Ultima_Actividad=min(INT_MAX, sesion.Fecha_Inicio + actividad),
                Estado_Sesion=0,
            )
        )
        assert updated == BadDates(reason)  # type: ignore[arg-type]
        assert state(redis) == before

    async def test_latest_possible_expiry(self, redis: Redis, store: SessionStore) -> None:
        sesion = await store.create(7, "d")
        given = sesion._replace(Fecha_Expiracion=sesion.Fecha_Inicio + MAX)
        assert await store.update(given) == given

    async def test_extremes_are_clamped(self, redis: Redis, store: SessionStore) -> None:
        sesion = age(redis, await store.create(7, "d"), 10)
        stored = await store.update(sesion._replace(Ultima_Actividad=0))
        assert stored == sesion
        moment = now(redis)
        stored = await store.update(sesion._replace(Ultima_Actividad=INT_MAX))
        assert isinstance(stored, Sesion)
        assert moment <= stored.Ultima_Actividad <= now(redis)
        assert stored.Fecha_Expiracion == sesion.Fecha_Expiracion

    async def test_stale_copy(self, redis: Redis, store: SessionStore) -> None:
        """A PUT made from what self said before a slide takes Ultima_Actividad no way back."""
        sesion = age(redis, await store.create(7, "d"), 300)
        found = await store.find(sesion.Token_Sesion)
        assert found is not None
        updated = await store.update(sesion._replace(Dispositivo="otro"))
        assert updated == found._replace(Dispositivo="otro")


class TestEnd:
    async def test_itself(self, redis: Redis, store: SessionStore) -> None:
        token = (await store.create(7, "d")).Token_Sesion
        assert await store.end(token, token) == 1
        assert await store.find(token) is None
        assert keys(redis) == ["sesiones:{eQ}:n"]
        assert await store.end(token, token) is Refusal.UNAUTHENTICATED

    async def test_another_of_the_user(self, redis: Redis, store: SessionStore) -> None:
        mine, theirs = await store.create(7, "a"), await store.create(7, "b")
        assert await store.end(mine.Token_Sesion, theirs.Token_Sesion) == 1
        assert await store.end(mine.Token_Sesion, theirs.Token_Sesion) == 0
        assert index(redis, 7) == indexed(mine)
        assert not redis.exists(session_key(theirs.Token_Sesion))

    async def test_an_inactive_one(self, redis: Redis, store: SessionStore) -> None:
        mine, theirs = await store.create(7, "a"), await store.create(7, "b")
        await store.update(theirs._replace(Estado_Sesion=0))
        assert await store.end(mine.Token_Sesion, theirs.Token_Sesion) == 1
        assert index(redis, 7) == indexed(mine)

    @pytest.mark.parametrize("user", [NEIGHBOUR, 8], ids=["same bucket", "other bucket"])
    async def test_anothers(self, redis: Redis, store: SessionStore, user: int) -> None:
        """Refused, active or not, and without using it."""
        mine, theirs = await store.create(7, "a"), await store.create(user, "b")
        theirs = age(redis, theirs, 100)
        for Estado_Sesion in (1, 0):
            await store.update(theirs._replace(Estado_Sesion=Estado_Sesion))
            before = state(redis)
            for end in (store.end, store.end_all):
                assert await end(mine.Token_Sesion, theirs.Token_Sesion) is Refusal.FORBIDDEN
            assert state(redis) == before

    @pytest.mark.parametrize(
        "designated",
        [
            "",
            "no token",
            "*",
            "ñ" * 49,
            "ses_eQpVOX1CvLlO0qt-iWCE2zk9cieXg0IwoD3_qGn7i1el8",
            "ses_LGDosh2Qik--oL0iS1l2sjfPLDl29QvvbLJDnLggL0sAU",
        ],
    )
    async def test_nobody(self, redis: Redis, store: SessionStore, designated: str) -> None:
        token = (await store.create(7, "d")).Token_Sesion
        before = state(redis)
        assert await store.end(token, designated) == 0
        assert state(redis) == before
        assert await store.end_all(token, designated) == 1

    async def test_by_an_inactive_caller(self, redis: Redis, store: SessionStore) -> None:
        mine, theirs = await store.create(7, "a"), await store.create(7, "b")
        await store.update(mine._replace(Estado_Sesion=0))
        before = state(redis)
        for designated in (mine, theirs):
            for end in (store.end, store.end_all):
                ended = await end(mine.Token_Sesion, designated.Token_Sesion)
                assert ended is Refusal.UNAUTHENTICATED
        assert state(redis) == before

    async def test_all(self, redis: Redis, store: SessionStore) -> None:
        """Every live one of the user, inactive ones too, and nobody else's."""
        made = [await store.create(7, str(i)) for i in range(5)]
        neighbour = await store.create(NEIGHBOUR, "ajena")
        await store.update(made[1]._replace(Estado_Sesion=0))
        age(redis, made[2], IDLE + 1)
        caller = made[0].Token_Sesion
        assert await store.end_all(caller, made[3].Token_Sesion) == 4
        assert state(redis).keys() == {
            session_key(neighbour.Token_Sesion),
            index_key(NEIGHBOUR),
            counter_key(7),
        }
        assert await store.end_all(caller, caller) is Refusal.UNAUTHENTICATED

    async def test_all_where_the_index_lost_the_caller(
        self, redis: Redis, store: SessionStore
    ) -> None:
        """It ends all the same: nobody stays logged in who asked not to be."""
        mine, _ = await store.create(7, "a"), await store.create(7, "b")
        redis.zrem(index_key(7), digest(mine.Token_Sesion))
        assert await store.end_all(mine.Token_Sesion, mine.Token_Sesion) == 2
        assert keys(redis) == ["sesiones:{eQ}:n"]

    async def test_all_of_more_than_unpack_takes(self, open_more: Opener, redis: Redis) -> None:
        store = open_more(max_per_user=10_000)
        sesion = await store.create(7, "d")
        many = {f"{i:022}": sesion.Fecha_Expiracion for i in range(9_000)}
        redis.zadd(index_key(7), many)
        with redis.pipeline(transaction=False) as pipeline:
            for name in many:
                pipeline.set(f"{base(7)}h:{name}", 1, exat=sesion.Fecha_Expiracion)
            pipeline.execute()
        assert await store.end_all(sesion.Token_Sesion, "") == 9_001
        assert keys(redis) == ["sesiones:{eQ}:n"]

    async def test_prunes_the_index(self, redis: Redis, store: SessionStore) -> None:
        made = [await store.create(7, name) for name in "abc"]
        age(redis, made[0], IDLE + 1)
        longer = await store.update(made[1]._replace(Fecha_Expiracion=made[1].Fecha_Inicio + MAX))
        assert isinstance(longer, Sesion)
        assert redis.expiretime(index_key(7)) == longer.Fecha_Expiracion
        assert await store.end(made[2].Token_Sesion, longer.Token_Sesion) == 1
        assert index(redis, 7) == indexed(made[2])
        assert redis.expiretime(index_key(7)) == made[2].Fecha_Expiracion


LOST: dict[str, Any] = {
    "evicted": lambda redis, sesion: redis.delete(index_key(7)),
    "another's alone": lambda redis, sesion: (
        redis.zadd(index_key(7), {"other": sesion.Fecha_Expiracion}),
        redis.zrem(index_key(7), digest(sesion.Token_Sesion)),
    ),
}
"""How a session's index may lose it, while its key is there."""


@pytest.mark.parametrize("lost", LOST)
class TestUnindexed:
    """The index is what logoutAll believes: a session that it has lost ends when it is used."""

    async def test_slide_ends_an_unindexed_session(
        self, redis: Redis, store: SessionStore, caplog: pytest.LogCaptureFixture, lost: str
    ) -> None:
        caplog.set_level(logging.INFO)
        sesion = age(redis, await store.create(7, "d"), 100)
        others = [age(redis, await store.create(user, "d"), 100) for user in (NEIGHBOUR, 8)]
        key = session_key(sesion.Token_Sesion)
        LOST[lost](redis, sesion)
        before, stored = index(redis, 7), redis.dump(key)
        found = await asyncio.gather(
            *(store.find(each.Token_Sesion) for each in (others[0], sesion, others[1]))
        )
        assert [seen and seen.ID_Usuario for seen in found] == [NEIGHBOUR, None, 8]
        assert not redis.exists(key)
        assert index(redis, 7) == before
        name = tokens.fingerprint(sesion.Token_Sesion)
        ended = f"ended session {sesion.ID_Sesion} of user 7, ses_#{name}: unindexed"
        assert [line for line in caplog.messages if line.startswith("ended")] == [ended]
        assert counted(store.metrics)["sesiones_sessions_ended_total['unindexed']"] == 1
        assert counted(store.metrics)["sesiones_slides_total[]"] == 2
        # Nor does it come back with a master that does not know that it has ended.
        assert stored is not None
        redis.restore(key, 1_000_000, stored)
        assert await store.find(sesion.Token_Sesion) is None

    @pytest.mark.parametrize("seconds", [0, -60])
    @pytest.mark.parametrize("estado", [1, 0])
    async def test_update_ends_an_unindexed_session(
        self, redis: Redis, store: SessionStore, lost: str, seconds: int, estado: int
    ) -> None:
        """Whether it changes the expiry or not, and whether the session is active or not."""
        sesion = (await store.create(7, "d"))._replace(Estado_Sesion=estado)
        assert await store.update(sesion) == sesion
        LOST[lost](redis, sesion)
        later = sesion._replace(Fecha_Expiracion=sesion.Fecha_Expiracion + seconds)
        assert await store.update(later) is None
        assert not redis.exists(session_key(sesion.Token_Sesion))
        assert counted(store.metrics)["sesiones_sessions_ended_total['unindexed']"] == 1

    async def test_logout_all_is_not_survived_by_an_unindexed_session(
        self, redis: Redis, store: SessionStore, lost: str
    ) -> None:
        sesion = age(redis, await store.create(7, "d"), 100)
        LOST[lost](redis, sesion)
        caller = (await store.create(7, "e")).Token_Sesion
        assert await store.end_all(caller, caller) == 1
        assert await store.find(sesion.Token_Sesion) is None

    async def test_refused_update_ends_nothing(
        self, redis: Redis, store: SessionStore, lost: str
    ) -> None:
        sesion = await store.create(7, "d")
        LOST[lost](redis, sesion)
        given = sesion._replace(ID_Usuario=8)
        assert await store.update(given) == Immutable(("ID_Usuario",))
        assert redis.exists(session_key(sesion.Token_Sesion))


@pytest.mark.parametrize(
    "operation", ["create", "find", "update", "end", "end_all", "end_user", "end_again"]
)
async def test_pruning_an_index_deletes_the_keys_that_it_names(
    redis: Redis, store: SessionStore, operation: str
) -> None:
    """Were they there when the clock steps back, they would live outside their index."""
    made = [age(redis, await store.create(7, name), 100) for name in "abcd"]
    neighbour = await store.create(NEIGHBOUR, "d")
    mine, other, *expired = made
    redis.zadd(index_key(7), {digest(s.Token_Sesion): now(redis) for s in expired})
    match operation:
        case "create":
            await store.create(7, "e")
        case "find":
            assert await store.find(mine.Token_Sesion) is not None
        case "update":
            assert await store.update(mine) is not None
        case "end":
            assert await store.end(mine.Token_Sesion, other.Token_Sesion) == 1
        case "end_all":
            assert await store.end_all(mine.Token_Sesion, mine.Token_Sesion) == 2
        case "end_user":
            assert await store.end_user(7, other.ID_Sesion) == 1
        case "end_again":
            redis.eval(lua("end_again"), 1, session_key(other.Token_Sesion))
    assert not redis.exists(*(session_key(s.Token_Sesion) for s in expired))
    assert not index(redis, 7).keys() & indexed(*expired).keys()
    assert redis.exists(session_key(neighbour.Token_Sesion))


async def test_a_dead_session_whose_key_is_there(redis: Redis, store: SessionStore) -> None:
    """Redis drops a key after the millisecond of its expiry, and EXPIRETIME is rounded: so a key
    can be there for half a second after the session's end in whole seconds. Nobody sees it."""
    for _ in range(5):
        redis.flushall()
        dead = await store.create(7, "muerta")
        token, key = dead.Token_Sesion, session_key(dead.Token_Sesion)
        mine, *others = [
            (await store.create(user, "viva")).Token_Sesion for user in (7, NEIGHBOUR, 8)
        ]
        end = now(redis) + 1
        redis.pexpireat(key, end * 1000 + 499)
        redis.zadd(index_key(7), {digest(token): end})
        assert redis.expiretime(key) == end
        wait_for(redis, end)

        longer = dead._replace(Fecha_Expiracion=end + 100)
        assert await store.find(token) is None
        assert [await store.update(given) for given in (dead, longer)] == [None, None]
        for end_ in (store.end, store.end_all):
            assert await end_(token, mine) is Refusal.UNAUTHENTICATED
        # Nor is it another user's, in the same bucket and in another one.
        assert [await store.end(caller, token) for caller in (mine, *others)] == [0, 0, 0]
        assert [await store.end_all(caller, token) for caller in (mine, *others)] == [1, 1, 1]
        if redis.exists(key):
            break
    else:
        pytest.skip("too slow a machine: the key was gone every time")


def replaced(old: str, new: str) -> Callable[[Redis, str], object]:
    """A record with another text in the place of one."""

    def replace(redis: Any, key: str) -> object:
        text, replacements = re.subn(old, new, str(redis.hget(key, "1"), "utf-8"), count=1)
        assert replacements == 1
        return redis.hset(key, "1", text)

    return replace


def changed(**fields: object) -> Callable[[Redis, str], object]:
    return lambda redis, key: write_record(redis, key, **fields)


BAD_RECORDS: dict[str, Any] = (
    {
        "a string": lambda redis, key: redis.set(key, "x", ex=100),
        "a list": lambda redis, key: (
            redis.delete(key),
            redis.rpush(key, 1),
            redis.expire(key, 100),
        ),
        "no expiry": lambda redis, key: redis.persist(key),
        "no hash fields of ours": lambda redis, key: (
            redis.hset(key, "x", 1),
            redis.hdel(key, "1"),
        ),
        "the fields of an older layout": lambda redis, key: (
            redis.hset(key, mapping={"id": 1, "usuario": 7, "dispositivo": "d"}),
            redis.hdel(key, "1"),
        ),
        "an empty text": lambda redis, key: redis.hset(key, "1", ""),
        "a device alone": replaced("^.*:", ""),
        "no device": replaced(":.*", ""),
        "invalid UTF-8": lambda redis, key: redis.hset(
            key, "1", (redis.hget(key, "1") or b"") + b"\xff\xfe"
        ),
        "estado 2": changed(estado=2),
        "estado 01": changed(estado="01"),
        "id a fraction": changed(id="1.5"),
        "inicio infinite": changed(inicio="inf"),
        "inicio nan": changed(inicio="nan"),
        "ventana hexadecimal": changed(ventana="0x10"),
        "dates beyond any": changed(inicio="9" * 400, ventana="9" * 400),
        "dates beyond Redis's": changed(inicio=10**17, ventana=10**17),
        "usuario beyond any": changed(usuario="9" * 400),
        "two blanks": replaced(" ", "  "),
        "a blank before": replaced("^", " "),
        "a blank after": replaced(":", " :"),
        "a number more": replaced(" ", " 1 "),
        "a line more": replaced("^", "\n"),
        "index a string": lambda redis, key: redis.set(index_key(7), "x", ex=100),
        "index a list": lambda redis, key: (
            redis.delete(index_key(7)),
            redis.rpush(index_key(7), 1),
        ),
    }
    | {f"{field} missing": changed(**{field: ""}) for field in NUMBERS}
    | {f"{field} not a number": changed(**{field: "x1"}) for field in NUMBERS}
    | {f"{field} negative": changed(**{field: -1}) for field in NUMBERS}
)


class TestBadRecords:
    @pytest.mark.parametrize("bad", BAD_RECORDS)
    async def test_is_a_401_of_its_own(
        self,
        redis: Redis,
        store: SessionStore,
        caplog: pytest.LogCaptureFixture,
        bad: str,
    ) -> None:
        """None and one logged error, which names no token; others of the same call are answered,
        whether they come before or after."""
        victim = age(redis, await store.create(7, "d"), 100)
        others = [await store.create(user, "d") for user in (NEIGHBOUR, 8, 9)]
        BAD_RECORDS[bad](redis, session_key(victim.Token_Sesion))
        order = [others[0], victim, *others[1:]]
        found = await asyncio.gather(*(store.find(sesion.Token_Sesion) for sesion in order))
        assert [seen and seen.ID_Usuario for seen in found] == [NEIGHBOUR, None, 8, 9]
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("sesiones.store", logging.ERROR)
        message = record.getMessage()
        assert tokens.fingerprint(victim.Token_Sesion) in message
        assert victim.Token_Sesion[6:] not in message

        replies = redis.eval(
            lua("check"), 0, 1, MAX, *(session_key(sesion.Token_Sesion) for sesion in order)
        )
        users = [replies[at].partition(b":")[0].split(b" ")[5] for at in (0, 4, 6)]
        assert users == [b"2061", b"8", b"9"]

    @pytest.mark.parametrize("score", ["inf", 4e18, 1e300, 10**10 + 0.5])
    async def test_bad_index_entry(
        self,
        redis: Redis,
        store: SessionStore,
        score: float,
    ) -> None:
        """An entry that no script of ours makes fails no one's check but its user's."""
        victim = age(redis, await store.create(7, "d"), 100)
        other = await store.create(8, "d")
        redis.zadd(index_key(7), {"x": score})
        _, found = await asyncio.gather(
            store.find(victim.Token_Sesion), store.find(other.Token_Sesion)
        )
        assert found is not None

    @pytest.mark.parametrize("bad", BAD_RECORDS)
    async def test_other_operations(self, redis: Redis, store: SessionStore, bad: str) -> None:
        """A bad record is not live: no update, no caller; designated, nobody. Where the record is
        good and its index is not, ending works and the rest is refused."""
        victim = age(redis, await store.create(7, "d"), 100)
        other = await store.create(8, "d")
        token = victim.Token_Sesion
        BAD_RECORDS[bad](redis, session_key(token))
        later = victim._replace(Fecha_Expiracion=victim.Fecha_Expiracion + 10)
        if bad.startswith("index"):
            with pytest.raises(StoreUnavailable):
                await store.create(7, "d")
            with pytest.raises(StoreUnavailable):
                await store.update(later)
            assert redis.expiretime(session_key(token)) == victim.Fecha_Expiracion
            with pytest.raises(StoreUnavailable):
                await store.end_all(token, token)
            assert redis.exists(session_key(token))
            assert await store.end(token, token) == 1
            assert await store.find(token) is None
        else:
            await store.update(victim)
            await store.end(token, token)
        assert await store.end(other.Token_Sesion, token) in (0, Refusal.FORBIDDEN)
        assert await store.end(other.Token_Sesion, other.Token_Sesion) == 1

    async def test_is_no_caller(self, redis: Redis, store: SessionStore) -> None:
        victim, other = await store.create(7, "a"), await store.create(7, "b")
        write_record(redis, session_key(victim.Token_Sesion), usuario="")
        for end in (store.end, store.end_all):
            ended = await end(victim.Token_Sesion, other.Token_Sesion)
            assert ended is Refusal.UNAUTHENTICATED
        assert await store.update(victim) is None
        assert await store.end(other.Token_Sesion, victim.Token_Sesion) == 0
        # Revoking everything ends it as well: it is in the index.
        assert await store.end_all(other.Token_Sesion, other.Token_Sesion) == 2
        assert keys(redis) == ["sesiones:{eQ}:n"]

    async def test_create_next_to_a_bad_counter(self, redis: Redis, store: SessionStore) -> None:
        """Refused, with nothing half done."""
        redis.set(counter_key(7), "x")
        with pytest.raises(StoreUnavailable):
            await store.create(7, "d")
        assert keys(redis) == [counter_key(7)]


class TestSecrecy:
    async def test_the_token_is_nowhere_in_redis(self, open_more: Opener, redis: Redis) -> None:
        """Not in a command, a key, a value or the append-only file; nor is its random part."""
        store = open_more(touch_seconds=0)
        with redis.monitor() as monitor:  # type: ignore[no-untyped-call]
            made = [await store.create(user, "el dispositivo") for user in (7, 7, 7, 8)]
            mine, theirs, kept, foreign = (sesion.Token_Sesion for sesion in made)
            await store.find(mine)
            await store.find(tokens.make(7))
            await store.update(made[0]._replace(Dispositivo="otro dispositivo"))
            for designated in (theirs, foreign, "no token"):
                await store.end(mine, designated)
            await store.end_all(mine, foreign)
            redis.echo("that was all")
            seen = bytearray()
            while b"that was all" not in seen:
                seen += str(monitor.next_command()).encode()
        for key in keys(redis):
            seen += key.encode() + (redis.dump(key) or b"")
        seen += str(state(redis)).encode()
        seen += append_only_file(redis)
        assert b"otro dispositivo" in seen
        assert digest(kept).encode() in seen
        for sesion in made:
            assert sesion.Token_Sesion[6:].encode() not in seen

    async def test_only_counters_have_no_expiry(self, redis: Redis, store: SessionStore) -> None:
        made = [await store.create(user, "d") for user in (7, 7, 8, NEIGHBOUR)]
        for sesion in made:
            age(redis, sesion, 10)
            await store.find(sesion.Token_Sesion)
        await store.update(made[0]._replace(Fecha_Expiracion=made[0].Fecha_Inicio + 60))
        await store.end(made[1].Token_Sesion, made[1].Token_Sesion)
        lasting = {key for key, (_, expiry) in state(redis).items() if expiry == -1}
        assert lasting == {counter_key(7), counter_key(8)}


class TestServer:
    async def test_scripts_are_loaded_again(self, redis: Redis, store: SessionStore) -> None:
        """A restarted or replaced server knows none."""
        redis.script_flush()
        mine = await store.create(7, "d")
        redis.script_flush()
        assert await store.find(mine.Token_Sesion) is not None
        redis.script_flush()
        assert isinstance(await store.update(mine), Sesion)
        other = await store.create(7, "d")
        redis.script_flush()
        assert await store.end(mine.Token_Sesion, other.Token_Sesion) == 1
        redis.script_flush()
        assert await store.end(mine.Token_Sesion, tokens.make(8)) == 0
        redis.script_flush()
        assert await store.end_all(mine.Token_Sesion, "") == 1

    async def test_memory_is_full(self, open_more: Opener, own_server: RedisServer) -> None:
        """Checks slide and logouts end as always, even where the scripts come anew; create and
        update are refused with nothing written."""
        store = open_more(own_server.url)
        with client(own_server) as redis:
            made = [await store.create(7, str(i)) for i in range(4)]
            sesion = age(redis, made[0], 100)
            redis.config_set("maxmemory", 1)
            for _ in range(2):
                found = await store.find(sesion.Token_Sesion)
                assert found is not None
                assert found.Ultima_Actividad >= sesion.Ultima_Actividad + 100
                assert index(redis, 7)[digest(sesion.Token_Sesion)] == found.Fecha_Expiracion
                redis.script_flush()
            before = state(redis)
            with pytest.raises(StoreUnavailable):
                await store.create(7, "d")
            with pytest.raises(StoreUnavailable):
                await store.update(made[1])
            assert state(redis) == before
            assert await store.end(sesion.Token_Sesion, made[1].Token_Sesion) == 1
            assert await store.end(sesion.Token_Sesion, tokens.make(8)) == 0
            assert await store.end_all(sesion.Token_Sesion, "") == 3
            assert await store.find(sesion.Token_Sesion) is None
            redis.config_set("maxmemory", 0)
            assert await store.find((await store.create(7, "d")).Token_Sesion) is not None

    @pytest.mark.parametrize("reason", ["NOREPLICAS", "MISCONF"])
    async def test_writes_are_refused(
        self, open_more: Opener, own_server: RedisServer, reason: str
    ) -> None:
        """Checks answer without sliding; everything else is refused, with nothing written."""
        store = open_more(own_server.url, touch_seconds=0)
        with client(own_server) as redis:
            mine, other = await store.create(7, "a"), await store.create(7, "b")
            inactive = await store.create(7, "c")
            await store.update(inactive._replace(Estado_Sesion=0))
            mine = age(redis, mine, 100)
            if reason == "NOREPLICAS":
                redis.config_set("min-replicas-to-write", 1)
            else:
                fail_to_save(redis)
            with pytest.raises(ResponseError, match=reason):
                redis.set("x", 1)

            before = state(redis)
            tried = [mine.Token_Sesion, inactive.Token_Sesion, tokens.make(7)]
            found = await asyncio.gather(*(store.find(token) for token in tried))
            assert found == [mine, None, None]
            for refused in (
                store.create(7, "d"),
                store.update(mine),
                store.end(mine.Token_Sesion, other.Token_Sesion),
                store.end_all(mine.Token_Sesion, mine.Token_Sesion),
            ):
                with pytest.raises(StoreUnavailable, match=reason):
                    await refused
            assert state(redis) == before

    async def test_a_demoted_master_authenticates_nobody(
        self, open_more: Opener, own_server: RedisServer
    ) -> None:
        store = open_more(own_server.url)
        with client(own_server) as redis:
            sesion = await store.create(7, "d")
            redis.replicaof("127.0.0.1", "1")
            for refused in (
                store.find(sesion.Token_Sesion),
                store.create(7, "d"),
                store.update(sesion),
                store.end(sesion.Token_Sesion, sesion.Token_Sesion),
                store.end_all(sesion.Token_Sesion, sesion.Token_Sesion),
            ):
                with pytest.raises(StoreUnavailable):
                    await refused
            redis.replicaof("NO", "ONE")
            assert await store.find(sesion.Token_Sesion) is not None

    def test_many_slots_in_one_call_of_a_cluster(self, cluster_node: Redis) -> None:
        """A check takes keys of any slots of its node, as arguments; so does its read-only twin.
        That is its flag's doing."""
        session_keys = []
        for user in range(300):
            token = tokens.make(user)
            declared = [session_key(token), index_key(user), counter_key(user)]
            bucket = tokens.bucket_number(tokens.user_bucket(user))
            cluster_node.eval(lua("create"), 3, *declared, bucket, user, "d", IDLE, MAX, 1000)
            write_record(cluster_node, session_key(token), actividad=now(cluster_node) - 100)
            session_keys.append(session_key(token))
        assert len({key_slot(key.encode()) for key in session_keys}) > 250
        moment = now(cluster_node)
        for name in ("peek", "check"):
            replies: Any = cluster_node.eval(lua(name), 0, 1, MAX, *session_keys)
            *sessions, _, _ = replies
            fields = [text.partition(b":")[0].split(b" ") for text in sessions[::2]]
            assert [int(field[5]) for field in fields] == list(range(300))
        assert all(int(field[0]) + int(field[1]) >= moment for field in fields)
        without = lua("check").replace(",allow-cross-slot-keys", "")
        with pytest.raises(ResponseError, match="slot"):
            cluster_node.eval(without, 0, 1, MAX, *session_keys)
