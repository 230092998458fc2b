"""What another prefix, database, service key or a near-cache does to sessions that exist. Times and
limits: clock/test_changed_settings.py."""

import asyncio

import pytest
from redis import Redis

from sesiones.metrics import CACHE_LOOKUPS, cell
from tests.harness.records import session_key
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import KEY, open_store

pytestmark = pytest.mark.anyio


async def test_another_prefix_hides_sessions_until_it_is_changed_back(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    async with open_store(redis_server.url) as store:
        token = (await store.create(7, "laptop")).Token_Sesion
        async with open_store(redis_server.url, key_prefix="otros") as others:
            assert await others.find(token) is None
            assert await others.sessions(7) == []
            await others.create(7, "phone")
            assert await others.end_user(7) == 1
        assert await store.find(token) is not None
        assert len(await store.sessions(7)) == 1


async def test_another_database_hides_sessions(redis_server: RedisServer, redis: "Redis") -> None:
    async with open_store(redis_server.url) as store:
        token = (await store.create(7, "laptop")).Token_Sesion
        async with open_store(f"{redis_server.url}?db=1") as others:
            assert await others.find(token) is None
        assert await store.find(token) is not None


async def test_another_service_key_leaves_sessions(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    async with open_store(redis_server.url) as store:
        token = (await store.create(7, "laptop")).Token_Sesion
    for key in KEY, "another" + KEY:
        with Service(
            SESIONES_REDIS_URL=redis_server.url,
            SESIONES_SERVICE_KEY=key,
            SESIONES_REDIS_TIMEOUT="5",
        ) as service:
            assert service.request("GET", "/sesiones/self", {"x-auth-token": token}).status == 200


async def test_near_cache_of_a_node_changes_no_session(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    async with open_store(redis_server.url, touch_seconds=60) as store:
        sesion = await store.create(7, "laptop")
        stored = redis.hgetall(session_key(sesion.Token_Sesion))
        async with open_store(redis_server.url, touch_seconds=60, cache_seconds=60) as cached:

            def hits() -> float:
                return cached.metrics.sums()[cell(CACHE_LOOKUPS, "hit")]

            async with asyncio.timeout(10):
                while hits() < 3:
                    assert await cached.find(sesion.Token_Sesion) == sesion
                    await asyncio.sleep(0.01)
        assert await store.find(sesion.Token_Sesion) == sesion
    assert redis.hgetall(session_key(sesion.Token_Sesion)) == stored
