"""What the scripts publish for the caches of other nodes: the digests of sessions that have ended
or changed, whatever ended them, and nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import RedisError

from sesiones.sesion import Login, Sesion
from sesiones.store import SessionStore
from sesiones.store.scripts import CHECK
from tests.harness.records import base, digest, index_key, session_key
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store

pytestmark = pytest.mark.anyio

Published = Callable[[], list[set[str]]]


@pytest.fixture
def published(redis: Redis) -> Iterator[Published]:
    """Returns the messages since the last time, each as the digests that it names."""
    listening = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    with listening as subscription:
        subscription.subscribe("sesiones:invalidated")

        def messages() -> list[set[str]]:
            redis.publish("sesiones:invalidated", "end")
            found: list[set[str]] = []
            while True:
                message = subscription.get_message(timeout=5)
                if message is None:
                    continue
                words = message["data"].decode().split(" ")
                if words == ["end"]:
                    return found
                assert len(words) == len({*words})
                found.append({*words})

        messages()
        yield messages


def digests(*sesiones: Sesion) -> set[str]:
    return {digest(sesion.Token_Sesion) for sesion in sesiones}


async def test_login_and_slide_publish_nothing(
    redis_server: RedisServer, published: Published
) -> None:
    async with open_store(redis_server.url, touch_seconds=0) as store:
        sesion = await store.create(7, "laptop")
        assert await store.find(sesion.Token_Sesion) is not None
        assert await store.update(sesion) == sesion
        assert await store.sessions(7) != []
    assert published() == []


async def test_change_publishes_its_session(store: SessionStore, published: Published) -> None:
    sesion = await store.create(7, "laptop")
    for changed in (
        sesion._replace(Dispositivo="phone"),
        sesion._replace(Dispositivo="phone", Estado_Sesion=0),
        sesion._replace(Dispositivo="phone", Fecha_Expiracion=sesion.Fecha_Expiracion - 60),
        sesion._replace(Dispositivo="phone"),
    ):
        assert isinstance(await store.update(changed), Sesion)
        assert published() == [digests(sesion)]


async def test_ending_publishes_its_sessions(store: SessionStore, published: Published) -> None:
    one, two, three, four = [await store.create(7, "laptop") for _ in range(4)]
    assert await store.end(one.Token_Sesion, two.Token_Sesion) == 1
    assert published() == [digests(two)]
    assert await store.end_one(one.Token_Sesion, three.ID_Sesion) == 1
    assert published() == [digests(three)]
    assert await store.end_others(one.Token_Sesion) == 1
    assert published() == [digests(four)]
    two, three = [await store.create(7, "laptop") for _ in range(2)]
    assert await store.end_all(one.Token_Sesion, one.Token_Sesion) == 3
    assert published() == [digests(one, two, three)]
    one, two = [await store.create(7, "laptop") for _ in range(2)]
    assert await store.end_user(7, one.ID_Sesion) == 1
    await store.revoke(two.Token_Sesion)
    assert published() == [digests(one), digests(two)]
    assert await store.end_user(7) == 0
    assert published() == []


async def test_login_publishes_what_it_replaces(store: SessionStore, published: Published) -> None:
    one, two = [await store.create(7, "laptop") for _ in range(2)]
    foreign = await store.create(8, "laptop")
    login = Login(Token_Anterior=one.Token_Sesion, Cerrar_Otras=1)
    three = await store.create(7, "laptop", login)
    assert published() == [digests(one, two)]
    four = await store.create(7, "laptop", Login(Max_Sesiones=1))
    await store.create(7, "laptop", Login(Sustituye=four.ID_Sesion))
    assert published() == [digests(three), digests(four)]
    await store.create(
        7, "laptop", replace(login, Cerrar_Otras=0, Token_Anterior=foreign.Token_Sesion)
    )
    assert published() == [digests(foreign)]


async def test_script_that_an_error_ends_publishes_what_it_has_ended(
    redis_server: RedisServer, redis: Redis, store: SessionStore, published: Published
) -> None:
    """A check ends a session that its index has lost. Another key of the batch then fails it."""
    lost, other = await store.create(7, "laptop"), await store.create(8, "laptop")
    redis.delete(index_key(7))
    redis.acl_setuser(
        "narrow",
        enabled=True,
        nopass=True,
        keys=[f"{base(7)}*"],
        channels=["*"],
        commands=["+@all"],
    )
    keys = [session_key(sesion.Token_Sesion) for sesion in (lost, other)]
    with (
        redis_server.client(username="narrow", password="x") as narrow,
        pytest.raises(RedisError, match=r"access|permission"),
    ):
        narrow.eval(CHECK.source, 0, "0", "43200", *keys, "0", "", "tag")
    redis.acl_deluser("narrow")
    assert not redis.exists(keys[0])
    assert published() == [digests(lost)]
