"""Several users of one Redis."""

from contextlib import suppress

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from sesiones.sesion import StoreUnavailable
from tests.harness.records import counter_key
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store
from tests.runbooks.sessions import create, live

pytestmark = pytest.mark.redis


def test_two_installations_may_give_the_same_number(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    far_ahead = 2**36  # of the time: then the counter alone decides
    redis.set(counter_key(7), far_ahead)
    redis.set(counter_key(7).replace("sesiones", "otros"), far_ahead)
    (one,) = create(redis_server.url, 7)
    (other,) = create(redis_server.url, 7, key_prefix="otros")
    assert one.ID_Sesion == other.ID_Sesion
    assert live(redis_server.url, [other]) == [False]


def test_flush_of_another_database_leaves_the_sessions(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    made = create(redis_server.url, 7)
    with redis_server.client(db=5) as neighbour:
        neighbour.set("x", "y")
        neighbour.flushdb()
    assert live(redis_server.url, made) == [True]


@pytest.mark.anyio
async def test_neighbour_that_fills_the_memory_stops_logins_but_no_check_or_logout() -> None:
    with RedisServer() as server, server.client() as neighbour:
        async with open_store(server.url) as store:
            made = [await store.create(7, "laptop") for _ in range(3)]
            neighbour.config_set("maxmemory", 3_000_000)
            filled = 0
            with suppress(StoreUnavailable):
                while True:
                    filled += fill(neighbour, filled)
                    await store.create(8, "laptop")
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await store.create(8, "laptop")
            assert await store.find(made[0].Token_Sesion) is not None
            assert await store.end(made[0].Token_Sesion, made[1].Token_Sesion) == 1
            assert await store.end_all(made[0].Token_Sesion, made[0].Token_Sesion) == 2
            neighbour.delete(*(f"cache:{number}" for number in range(filled)))
            await store.create(8, "laptop")


def fill(neighbour: "Redis", number: int) -> int:
    """Write a page into the cache, if there is room: how many."""
    try:
        neighbour.set(f"cache:{number}", "x" * 50_000)
    except OutOfMemoryError:
        return 0
    return 1
