"""The hazards of the contract, forced in races on a real server.

Each scenario is also run with a naive variant, and has to catch it: so the tests can fail.
SESIONES_TEST_ROUNDS multiplies the rounds, for longer runs.
"""

from typing import Any

import pytest
from redis import Redis

from sesiones.redis_client import connect
from sesiones.sesion import Refusal, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.records import MAX, digest, index_key, session_key
from tests.harness.redis_server import RedisServer
from tests.harness.relay import Relay
from tests.store.lost_reply import LostReply
from tests.store.naive import (
    BelievesTheIndex,
    BelievesTheKey,
    CreatesInSteps,
    EndsAllOfAList,
    NoTwin,
    PutsInSteps,
    SlidesInSteps,
    TokenPerTry,
    edited,
)
from tests.store.races import AGE, ROUNDS, Nodes, open_node, run
from tests.store.scenarios import SCENARIOS

pytestmark = pytest.mark.anyio

DROPS = 3 * ROUNDS // 10
"""Rounds through a relay, each of which takes two new connections."""


@pytest.mark.race
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_scenario_holds_in_races(server: RedisServer, scenario: str) -> None:
    assert await run(server, SCENARIOS[scenario]) == []


@pytest.mark.parametrize(
    ("scenario", "variant", "caught"),
    [
        ("logout races slide and PUT", SlidesInSteps, "is there after its logout"),
        ("logout races slide and PUT", PutsInSteps, "has no expiry"),
        ("logoutAll races create and slide", EndsAllOfAList, "lives outside the index"),
        ("logoutAll races create and slide", SlidesInSteps, "lives after logoutAll"),
        ("logoutAll races create and slide", CreatesInSteps, "the index does not say so"),
        ("sessions expire", BelievesTheKey, "a check sees a dead session"),
        ("sessions expire", BelievesTheIndex, "logoutAll counts dead sessions"),
        ("sessions without expiry", CreatesInSteps, "has no expiry"),
        ("replies are lost", TokenPerTry, "one create made 2 sessions"),
        ("memory comes and goes", edited("flags=allow-oom,", "flags="), "a check is refused"),
        ("memory comes and goes", edited(" flags=allow-oom\n", "\n"), "a logout is"),
        ("replicas come and go", NoTwin, "a check is refused"),
        (
            "indexes are lost",
            edited("elseif added == 1 then", "elseif false then"),
            "a session lives after logoutAll",
        ),
        ("records are bad", edited("redis.pcall", "redis.call"), "a check failed"),
    ],
)
async def test_naive_variant_is_caught(
    server: RedisServer, scenario: str, variant: Any, caught: str
) -> None:
    """A variant is of the store, or of its commands."""
    wrong = await run(server, SCENARIOS[scenario], variant, until=caught)
    assert any(caught in what for what in wrong), wrong


@pytest.mark.parametrize("operation", ["find", "update", "create"])
async def test_key_has_an_expiry_though_its_second_ends_within_a_script(
    server: RedisServer, operation: str
) -> None:
    """4. Redis 7.0 deletes a key at once when its new expiry has passed, by a clock that goes on
    within a script: what the script then writes is a key without an expiry."""
    time_read = "local now = tonumber(time[1])"
    slow = edited(time_read, f"{time_read} for _ = 1, 3e7 do end")
    nodes, slow_store = (
        Nodes(server, SessionStore, None),
        open_node(slow(connect(server.url, 5.0)), SessionStore),
    )
    try:
        await nodes.reset()
        end = int((await nodes.redis.execute("TIME"))[0]) + 2
        sesion = await nodes.any().create(7, "d")
        token = sesion.Token_Sesion
        keys = session_key(token), index_key(7)
        await nodes.redis.execute("EVAL", AGE, 2, *keys, digest(token), end, end - MAX)
        await nodes.until(end - 0.05)
        match operation:
            case "find":
                await slow_store.find(token)
            case "update":
                sooner = sesion._replace(Fecha_Inicio=end - MAX, Ultima_Actividad=end - 2)
                await nodes.redis.execute("EXPIREAT", session_key(token), end + 9)
                await nodes.redis.execute("ZADD", index_key(7), end + 9, digest(token))
                await slow_store.update(sooner._replace(Fecha_Expiracion=end))
            case "create":
                await slow_store.create(7, "e")
        assert int((await nodes.redis.execute("TIME"))[0]) >= end
        assert await nodes.observe() == []
    finally:
        await nodes.aclose()
        await slow_store.aclose()


@pytest.mark.parametrize("kind", [SessionStore, TokenPerTry])
async def test_each_operation_survives_a_connection_that_breaks_before_its_reply(
    redis_server: RedisServer, redis: Redis, kind: type[SessionStore]
) -> None:
    """5. On a real connection: a create makes one session, where a naive one makes two; a PUT
    happens; a check answers; a logout happens and is an error, and asking again says 401."""
    lost = LostReply()
    with Relay(redis_server.socket, lambda: lost) as relay:
        store = open_node(connect(f"redis://127.0.0.1:{relay.port}", 5.0), kind)
        try:
            # Then the scripts are known and the connection open: the next reply is the operation's.
            first = await store.create(0, "d")
            await store.update(first)
            await store.end(first.Token_Sesion, first.Token_Sesion)
            doubles = 0
            for user in range(1, DROPS + 1):
                mine = await store.create(user, "a")
                await lost.arm(store)
                sesion = await store.create(user, "b")
                token = sesion.Token_Sesion
                if redis.zcard(index_key(user)) != 2:
                    doubles += 1
                    continue
                assert redis.exists(session_key(mine.Token_Sesion), session_key(token)) == 2
                await lost.arm(store)
                assert await store.update(sesion._replace(Dispositivo="e")) is not None
                await lost.arm(store)
                found = await store.find(token)
                assert found is not None
                assert (found.ID_Sesion, found.Dispositivo) == (sesion.ID_Sesion, "e")
                await lost.arm(store)
                with pytest.raises(StoreUnavailable):
                    await store.end(token, token)
                assert not redis.exists(session_key(token))
                assert await store.end(token, token) is Refusal.UNAUTHENTICATED
            assert doubles == (DROPS if kind is TokenPerTry else 0)
        finally:
            await store.aclose()
