"""The endpoints that list and end sessions, for their owner and for the backend; and what all
endpoints of management share."""

from typing import Any

import pytest
from redis import Redis
from starlette.applications import Starlette

from sesiones.sesion import Sesion
from tests.harness import asgi
from tests.harness.api import (
    BACKEND_ROUTES,
    BUCKET_MATE,
    CALLER_ROUTES,
    INTROSPECTION,
    OTHER_USER,
    REVOCATION,
    SERVICE,
    USER,
    Client,
    caller,
    check_count,
    check_problem,
    list_own,
    list_user,
    post,
)
from tests.harness.contract import LISTED
from tests.harness.records import age, record, session_key, write_record
from tests.harness.service import Service
from tests.harness.stores import KEY

pytestmark = pytest.mark.anyio

OWNER_DELETES = ["/sesiones/logoutOthers", "/sesiones/4096"]


# GET and HEAD /sesiones


async def test_list_has_every_live_session_of_the_user(client: Client, redis: "Redis") -> None:
    mine, inactive, expired = [await client.create() for _ in range(3)]
    await client.create(BUCKET_MATE)
    await client.put(inactive, Estado_Sesion=0)
    redis.delete(session_key(expired["Token_Sesion"]))
    sessions = await list_own(client, mine)
    assert sorted(session["ID_Sesion"] for session in sessions) == sorted(
        [mine["ID_Sesion"], inactive["ID_Sesion"]]
    )
    for session in sessions:
        assert list(session) == [*LISTED, "Actual"]
        of = mine if session["ID_Sesion"] == mine["ID_Sesion"] else inactive
        assert session["Actual"] is (of is mine)
        assert session["Estado_Sesion"] == (1 if of is mine else 0)
        assert session["Fecha_Inicio"] == of["Fecha_Inicio"]
        assert session["Dispositivo"] == of["Dispositivo"]


async def test_list_is_most_recently_used_first_then_highest_number_first(
    client: Client, redis: "Redis"
) -> None:
    made = [await client.create() for _ in range(5)]
    used = dict(zip(map(_number, made), (0, -200, -100, -200, -300), strict=True))
    for sesion in made[1:]:
        key, second = session_key(sesion["Token_Sesion"]), made[0]["Fecha_Inicio"]
        write_record(redis, key, actividad=second + used[_number(sesion)])
    expected = sorted(used, key=lambda number: (-used[number], -number))
    assert [session["ID_Sesion"] for session in await list_own(client, made[0])] == expected
    assert await list_user(client, USER) == expected


def _number(sesion: dict[str, Any]) -> int:
    number: int = sesion["ID_Sesion"]
    return number


async def test_list_and_count_never_have_a_token_or_a_digest(client: Client) -> None:
    sesion, other = await client.create(), await client.create()
    replies = [
        await client.send("GET", "/sesiones", caller(sesion)),
        await client.send("GET", f"/sesiones/usuarios/{USER}", SERVICE),
        await client.send("DELETE", f"/sesiones/{other['ID_Sesion']}", caller(sesion)),
    ]
    for reply in replies:
        for token in sesion["Token_Sesion"], other["Token_Sesion"]:
            digest = session_key(token).rpartition(":")[2]
            assert token.encode() not in reply.body
            assert digest.encode() not in reply.body


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/sesiones"), *(("DELETE", path) for path in OWNER_DELETES)]
)
async def test_request_of_the_owner_is_a_use(
    client: Client, redis: "Redis", method: str, path: str
) -> None:
    sesion = await client.create()
    age(redis, Sesion(**sesion), 100)
    before = int(record(redis, session_key(sesion["Token_Sesion"]))["actividad"])
    assert (await client.send(method, path, caller(sesion))).status == 200
    after = int(record(redis, session_key(sesion["Token_Sesion"]))["actividad"])
    assert after >= before + 100
    assert redis.expiretime(session_key(sesion["Token_Sesion"])) == after + 1800


# DELETE of the owner


async def test_delete_by_number_ends_that_session(client: Client) -> None:
    own, other, third = [await client.create() for _ in range(3)]
    path = f"/sesiones/{other['ID_Sesion']}"
    check_count(await client.send("DELETE", path, caller(own)), 1)
    check_count(await client.send("DELETE", path, caller(own)), 0)
    alive = [await client.alive(one["Token_Sesion"]) for one in (own, other, third)]
    assert alive == [True, False, True]
    check_count(await client.send("DELETE", f"/sesiones/{own['ID_Sesion']}", caller(own)), 1)
    check_problem(await client.send("DELETE", path, caller(own)), 401)


@pytest.mark.parametrize("user", [BUCKET_MATE, OTHER_USER])
async def test_delete_of_another_users_number_tells_nothing(client: Client, user: int) -> None:
    own, others = await client.create(), await client.create(user)
    replies = [
        await client.send("DELETE", f"/sesiones/{number}", caller(own))
        for number in (others["ID_Sesion"], 2**53 - 1)
    ]
    for reply in replies:
        check_count(reply, 0)
    assert await client.alive(others["Token_Sesion"])


async def test_delete_by_number_ends_an_inactive_session(client: Client) -> None:
    own, inactive = await client.create(), await client.create()
    await client.put(inactive, Estado_Sesion=0)
    path = f"/sesiones/{inactive['ID_Sesion']}"
    check_count(await client.send("DELETE", path, caller(own)), 1)
    check_problem(await client.put(inactive), 404)


async def test_logout_others_leaves_the_caller_and_other_users(client: Client) -> None:
    own, *others = [await client.create() for _ in range(4)]
    await client.put(others[0], Estado_Sesion=0)
    neighbour = await client.create(BUCKET_MATE)
    check_count(await client.send("DELETE", "/sesiones/logoutOthers", caller(own)), 3)
    check_count(await client.send("DELETE", "/sesiones/logoutOthers", caller(own)), 0)
    assert [session["ID_Sesion"] for session in await list_own(client, own)] == [own["ID_Sesion"]]
    assert await client.alive(neighbour["Token_Sesion"])


@pytest.mark.parametrize("path", OWNER_DELETES)
async def test_body_and_query_of_the_owners_deletes_are_ignored(client: Client, path: str) -> None:
    own = await client.create()
    headers = caller(own) | {"Content-Type": "text/plain", "Content-Encoding": "gzip"}
    reply = await client.send("DELETE", path, headers, b"x" * 20_000, "a=%FF&a")
    check_count(reply, 0)


# Paths


BAD_NUMBERS = [
    *("0", "00", "01", "+1", "-1", "1.0", "1e3", "0x1", "1_0", "1 ", " 1", "a", "{}"),
    "{ID_Sesion}",
    *("9007199254740992", "9" * 16, "1" * 17, "1/", "/1", "1/2", "\u0661", "1\n", "1%0A", "%31"),
    *("Logoutothers", "logoutOthers/", "usuarios", "introspeccion/", ""),
]


@pytest.mark.parametrize("segment", BAD_NUMBERS)
async def test_last_segment_that_is_no_number_of_a_session_is_a_404(
    client: Client, segment: str
) -> None:
    own = await client.create()
    check_problem(await client.send("DELETE", f"/sesiones/{segment}", caller(own)), 404)
    check_problem(await client.send("DELETE", f"/sesiones/{segment}"), 404)
    if segment != "0":
        path = f"/sesiones/usuarios/{segment}"
        if segment != "1/2":
            check_problem(await client.send("GET", path, SERVICE), 404)
    below = f"/sesiones/usuarios/{USER}/{segment}"
    check_problem(await client.send("DELETE", below, SERVICE), 404)
    assert await client.alive(own["Token_Sesion"])


@pytest.mark.parametrize(
    "path",
    [
        *("/sesiones/usuarios", "/sesiones/usuarios/", "/sesiones//usuarios/@"),
        *("/sesiones/usuarios//@", "/sesiones/usuarios/@/", "/sesiones/usuarios/{}/@"),
        *("/sesiones/usuarios/{ID_Usuario}", "/sesiones/usuarios/{ID_Usuario}/@"),
        *("/sesiones/Usuarios/@", "/sesiones/./usuarios/@", "/sesiones/usuarios/@/1/1"),
        "//sesiones/usuarios/@",
    ],
)
async def test_path_that_is_nearly_a_users_is_a_404_and_ends_nothing(
    client: Client, path: str
) -> None:
    own = await client.create()
    for method in "GET", "DELETE":
        check_problem(await client.send(method, path.replace("@", str(USER)), SERVICE), 404)
    assert await client.alive(own["Token_Sesion"])


@pytest.mark.parametrize(
    "path",
    [
        *("/%73esiones/usuarios/7", "/sesiones/%75suarios/7", "/sesiones/usuarios/%37"),
        *("/sesiones/usuarios%2F7", "/sesiones/introspecci%6Fn", "/sesiones/logout%4Fthers"),
    ],
)
def test_path_is_compared_as_it_was_sent(redis: "Redis", service: Service, path: str) -> None:
    for method in "GET", "DELETE", "POST":
        check_problem(service.request(method, path, SERVICE), 404)


async def test_largest_numbers_are_good(client: Client) -> None:
    own, largest = await client.create(), 2**53 - 1
    check_count(await client.send("DELETE", f"/sesiones/{largest}", caller(own)), 0)
    for path in f"/sesiones/usuarios/{largest}", f"/sesiones/usuarios/0/{largest}":
        check_count(await client.send("DELETE", path, SERVICE), 0)
    assert await list_user(client, largest) == []


# The backend's, by user


async def test_backend_lists_without_actual(client: Client) -> None:
    first, second = await client.create(), await client.create()
    reply = await client.send("GET", f"/sesiones/usuarios/{USER}", SERVICE)
    sessions = reply.json()["Sesiones"]
    assert list(reply.json()) == ["Sesiones"]
    assert [list(session) for session in sessions] == [LISTED, LISTED]
    assert {s["ID_Sesion"] for s in sessions} == {first["ID_Sesion"], second["ID_Sesion"]}


async def test_backends_list_is_no_use(client: Client, redis: "Redis") -> None:
    sesion = await client.create()
    age(redis, Sesion(**sesion), 100)
    before = record(redis, session_key(sesion["Token_Sesion"]))
    await list_user(client, USER)
    assert record(redis, session_key(sesion["Token_Sesion"])) == before


async def test_user_without_sessions_has_an_empty_list(client: Client, redis: "Redis") -> None:
    reply = await client.send("GET", "/sesiones/usuarios/0", SERVICE)
    assert (reply.status, reply.body) == (200, b'{"Sesiones":[]}')


async def test_backend_ends_one_session_or_all(client: Client) -> None:
    sessions = [await client.create() for _ in range(4)]
    neighbour = await client.create(BUCKET_MATE)
    base = f"/sesiones/usuarios/{USER}"
    one = f"{base}/{sessions[0]['ID_Sesion']}"
    check_count(await client.send("DELETE", one, SERVICE), 1)
    check_count(await client.send("DELETE", one, SERVICE), 0)
    other = f"{base}/{neighbour['ID_Sesion']}"
    check_count(await client.send("DELETE", other, SERVICE), 0)
    check_count(await client.send("DELETE", base, SERVICE), 3)
    check_count(await client.send("DELETE", base, SERVICE), 0)
    assert await client.alive(neighbour["Token_Sesion"])


# Credentials, and errors that need no Redis


@pytest.mark.parametrize(("method", "path"), BACKEND_ROUTES)
async def test_route_of_the_backend_needs_the_service_key(
    client: Client, method: str, path: str
) -> None:
    sesion = await client.create()
    bearer = {"Authorization": f"Bearer {sesion['Token_Sesion']}"}
    for headers in {}, caller(sesion), bearer, {"Authorization": f"Bearer {KEY[:-1]}"}:
        reply = await client.send(method, path, headers)
        presented = "Authorization" in headers
        challenge = 'Bearer realm="sesiones"' + ', error="invalid_token"' * presented
        assert (reply.status, reply.headers["www-authenticate"]) == (401, challenge)
    assert await client.alive(sesion["Token_Sesion"])


@pytest.mark.parametrize(("method", "path"), CALLER_ROUTES)
async def test_route_of_the_owner_refuses_the_service_key(
    client: Client, method: str, path: str
) -> None:
    assert (await client.send(method, path, SERVICE)).status == 401


async def test_answers_of_management_have_no_identity(app: Starlette) -> None:
    client = Client(app, None)
    own = await client.create()
    replies = [
        await asgi.request(app, "GET", "/sesiones", caller(own).items()),
        await asgi.request(app, "GET", "/sesiones/usuarios/7", SERVICE.items()),
        await asgi.request(app, "DELETE", "/sesiones/logoutOthers", caller(own).items()),
        await post(client, INTROSPECTION, own["Token_Sesion"]),
        await post(client, REVOCATION, own["Token_Sesion"]),
    ]
    assert not any("x-id-usuario" in reply.headers for reply in replies)
