"""The endpoints of management on each kind of deployment of Redis, and while its memory is full."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest

from sesiones.sesion import StoreUnavailable
from tests.harness.api import (
    INTROSPECTION,
    JSON,
    REVOCATION,
    SERVICE,
    Client,
    caller,
    check_count,
    check_problem,
    list_own,
    list_user,
    open_app,
    post,
)
from tests.harness.faults import full
from tests.harness.records import keys, session_key
from tests.harness.redis_server import RedisServer
from tests.harness.stores import available

pytestmark = pytest.mark.anyio

USERS = range(8)
"""In eight hash slots, on every master of a Cluster."""


@asynccontextmanager
async def client_on(url: str) -> AsyncIterator[Client]:
    app = open_app(url)
    async with app.router.lifespan_context(app):
        yield Client(app, None)


async def login(client: Client, user: int, **fields: object) -> Any:
    body = orjson.dumps({"ID_Usuario": user, "Dispositivo": "d"} | fields)
    return await client.send("POST", "/sesiones", SERVICE | JSON, body)


async def manage(client: Client, user: int) -> None:
    """One user's sessions, through every endpoint and every field of a login that ends one."""

    async def log_in(**fields: object) -> dict[str, Any]:
        reply = await login(client, user, **fields)
        if reply.status == 503:  # Sentinels and a Cluster take a moment
            raise StoreUnavailable
        assert reply.status == 201, reply
        made: dict[str, Any] = reply.json()
        return made

    async def live() -> set[str]:
        return {
            token for token in tokens if (await post(client, INTROSPECTION, token)).json()["active"]
        }

    first = await available(log_in, 10)
    foreign = await client.create(1000 + user)
    made = [first, *[await log_in() for _ in range(6)]]
    tokens = [each["Token_Sesion"] for each in (*made, foreign)]
    numbers = [each["ID_Sesion"] for each in made]
    assert {each["ID_Sesion"] for each in await list_own(client, first)} == set(numbers)
    end = partial(client.send, "DELETE")
    check_count(await end(f"/sesiones/{numbers[1]}", caller(first)), 1)
    check_count(await end(f"/sesiones/{foreign['ID_Sesion']}", caller(first)), 0)
    check_count(await end(f"/sesiones/usuarios/{user}/{numbers[2]}", SERVICE), 1)
    assert (await post(client, REVOCATION, tokens[3])).status == 200
    assert await live() == {tokens[0], *tokens[4:]}
    mine = await log_in(
        Token_Anterior=foreign["Token_Sesion"], Sustituye=numbers[4], Ventana=60, Vida_Maxima=60
    )
    assert mine["Fecha_Expiracion"] == mine["Fecha_Inicio"] + 60
    assert await live() == {tokens[0], *tokens[5:7]}
    check_count(await end("/sesiones/logoutOthers", caller(mine)), 3)
    assert await live() == set()
    assert await list_user(client, user) == [mine["ID_Sesion"]]
    last = await log_in(Cerrar_Otras=1)
    only = await log_in(Max_Sesiones=1)
    assert await list_user(client, user) == [only["ID_Sesion"]]
    assert (await client.send("GET", "/sesiones", caller(last))).status == 401
    check_count(await end(f"/sesiones/usuarios/{user}", SERVICE), 1)
    check_problem(await client.send("GET", "/sesiones", caller(only)), 401)


async def test_users_of_many_slots_are_managed_on_every_deployment(deployment_url: str) -> None:
    async with client_on(deployment_url) as client:
        for user in USERS:
            await manage(client, user)


FIELDS: list[dict[str, Any]] = [
    *({}, {"Ventana": 60}, {"Vida_Maxima": 60}, {"Cerrar_Otras": 1}, {"Max_Sesiones": 1}),
    *({"Sustituye": "own"}, {"Token_Anterior": "own"}, {"Token_Anterior": "foreign"}),
]


async def test_memory_is_full_for_every_login_and_for_no_ending() -> None:
    """A login ends nothing then, whatever it asks for. Lists and endings work."""
    with RedisServer() as server, server.client() as redis:
        async with client_on(server.url) as client:
            mine, *others = [await client.create(7) for _ in range(5)]
            foreign = await client.create(8)
            values: dict[Any, Any] = {"own": others[0], "foreign": foreign}
            before = sorted(keys(redis))
            with full(server):
                for fields in FIELDS:
                    asked = {
                        name: values[value]["ID_Sesion" if name == "Sustituye" else "Token_Sesion"]
                        if value in values
                        else value
                        for name, value in fields.items()
                    }
                    check_problem(await login(client, 7, **asked), 503)
                    assert sorted(keys(redis)) == before
                assert len(await list_own(client, mine)) == 5
                assert (await post(client, INTROSPECTION, mine["Token_Sesion"])).json()["active"]
                end = partial(client.send, "DELETE")
                check_count(await end(f"/sesiones/{others[0]['ID_Sesion']}", caller(mine)), 1)
                path = f"/sesiones/usuarios/7/{others[1]['ID_Sesion']}"
                check_count(await end(path, SERVICE), 1)
                reply = await post(client, REVOCATION, others[2]["Token_Sesion"])
                assert (reply.status, reply.body) == (200, b"")
                check_count(await end("/sesiones/logoutOthers", caller(mine)), 1)
                assert await list_user(client, 7) == [mine["ID_Sesion"]]
                check_count(await end("/sesiones/usuarios/7", SERVICE), 1)
            assert redis.keys("*:h:*") == [session_key(foreign["Token_Sesion"]).encode()]
