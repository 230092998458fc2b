"""The optional fields of POST /sesiones: a login in one act, and the limit that refuses."""

from collections.abc import AsyncIterator
from urllib.parse import urlencode

import orjson
import pytest
from redis import Redis
from starlette.applications import Starlette

from sesiones.http.app import create_app
from sesiones.sesion import Sesion
from sesiones.settings import Settings
from tests.harness.api import (
    BUCKET_MATE,
    DEVICE,
    FORM,
    JSON,
    MALFORMED,
    OTHER_USER,
    SERVICE,
    UNKNOWN,
    USER,
    Client,
    bad_fields,
    check_problem,
    list_user,
)
from tests.harness.contract import LISTED
from tests.harness.records import age
from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply
from tests.harness.stores import KEY

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[JSON, FORM], ids=["JSON", "form"])
def media_type(request: pytest.FixtureRequest) -> dict[str, str]:
    kind: dict[str, str] = request.param
    return kind


async def log_in(client: Client, media_type: dict[str, str], **fields: object) -> Reply:
    members = {"ID_Usuario": USER, "Dispositivo": DEVICE, **fields}
    body = orjson.dumps(members) if media_type is JSON else urlencode(members).encode()
    return await client.send("POST", "/sesiones", SERVICE | media_type, body)


@pytest.mark.parametrize(
    ("fields", "lives"),
    [
        ({}, 1800),
        ({"Ventana": 60}, 60),
        ({"Ventana": 43_200}, 43_200),
        ({"Vida_Maxima": 60}, 60),
        ({"Vida_Maxima": 34_560_000}, 1800),
        ({"Vida_Maxima": 34_560_000, "Ventana": 34_560_000}, 34_560_000),
        ({"Vida_Maxima": 90, "Ventana": 90}, 90),
        ({"Vida_Maxima": 90, "Ventana": 1}, 1),
    ],
)
async def test_login_chooses_window_and_life(
    client: Client, media_type: dict[str, str], fields: dict[str, int], lives: int
) -> None:
    reply = await log_in(client, media_type, **fields)
    assert reply.status == 201
    sesion = reply.json()
    assert sesion["Fecha_Expiracion"] - sesion["Fecha_Inicio"] == lives


async def test_check_and_update_honour_a_life_of_its_own(client: Client, redis: "Redis") -> None:
    short = (await log_in(client, JSON, Vida_Maxima=2000)).json()
    caller = {"x-auth-token": short["Token_Sesion"]}
    age(redis, Sesion(**short), 1000)
    slid = (await client.send("GET", "/sesiones/self", caller)).json()
    assert slid["Fecha_Expiracion"] == slid["Fecha_Inicio"] + 2000
    reply = await client.put(slid, Fecha_Expiracion=slid["Fecha_Inicio"] + 2001)
    check_problem(reply, 422)
    assert bad_fields(reply) == ["Fecha_Expiracion"]
    assert (await client.put(slid)).json() == slid  # changes nothing

    long = (await log_in(client, JSON, Vida_Maxima=100_000)).json()
    last = long["Fecha_Inicio"] + 100_000
    assert (await client.put(long, Fecha_Expiracion=last)).json()["Fecha_Expiracion"] == last
    check_problem(await client.put(long, Fecha_Expiracion=last + 1), 422)


async def test_window_as_long_as_the_life_is_a_fixed_end(client: Client, redis: "Redis") -> None:
    sesion = (await log_in(client, JSON, Vida_Maxima=2000, Ventana=2000)).json()
    age(redis, Sesion(**sesion), 1000)
    caller = {"x-auth-token": sesion["Token_Sesion"]}
    slid = (await client.send("GET", "/sesiones/self", caller)).json()
    assert slid["Ultima_Actividad"] > sesion["Ultima_Actividad"] - 1000
    assert slid["Fecha_Expiracion"] == sesion["Fecha_Expiracion"] - 1000


async def test_login_with_every_field_does_all_that_they_ask_for(
    client: Client, media_type: dict[str, str]
) -> None:
    previous, others = await client.create(OTHER_USER), [await client.create() for _ in range(3)]
    reply = await log_in(
        client,
        media_type,
        Ventana=60,
        Vida_Maxima=120,
        Token_Anterior=previous["Token_Sesion"],
        Cerrar_Otras=1,
        Max_Sesiones=1,
        Sustituye=others[0]["ID_Sesion"],
    )
    assert reply.status == 201
    assert await list_user(client, USER) == [reply.json()["ID_Sesion"]]
    assert not await client.alive(previous["Token_Sesion"])


@pytest.mark.parametrize("user", [USER, BUCKET_MATE, OTHER_USER])
async def test_login_ends_the_session_that_it_replaces(
    client: Client, media_type: dict[str, str], user: int
) -> None:
    previous, kept = await client.create(user), await client.create()
    reply = await log_in(client, media_type, Token_Anterior=previous["Token_Sesion"])
    assert reply.status == 201
    assert not await client.alive(previous["Token_Sesion"])
    assert await client.alive(kept["Token_Sesion"])


@pytest.mark.parametrize("token", [UNKNOWN, MALFORMED, "", "ñ"])
async def test_previous_token_of_no_session_is_ignored(
    client: Client, media_type: dict[str, str], token: str
) -> None:
    assert (await log_in(client, media_type, Token_Anterior=token)).status == 201


async def test_login_ends_the_substituted_session_of_the_user_alone(
    client: Client, media_type: dict[str, str]
) -> None:
    mine, neighbours = await client.create(), await client.create(BUCKET_MATE)
    for sesion, alive in (mine, False), (neighbours, True):
        reply = await log_in(client, media_type, Sustituye=sesion["ID_Sesion"])
        assert reply.status == 201
        assert await client.alive(sesion["Token_Sesion"]) is alive


async def test_login_with_a_limit_ends_what_expires_first(
    client: Client, media_type: dict[str, str]
) -> None:
    soon = (await log_in(client, media_type, Ventana=60)).json()
    later = [await client.create() for _ in range(2)]
    reply = await log_in(client, media_type, Max_Sesiones=3)
    assert reply.status == 201
    expected = {reply.json()["ID_Sesion"], *(sesion["ID_Sesion"] for sesion in later)}
    assert set(await list_user(client, USER)) == expected
    assert not await client.alive(soon["Token_Sesion"])


BAD_JSON: list[object] = [None, True, False, 1.0, "1", "", [], {}, -1, 2**53]
BAD_FORM = ["", "01", "+1", "-1", " 1", "1.0", "true", "null", "٣", "9007199254740992", "1" * 17]
TOO_MUCH: dict[str, list[int]] = {
    "Ventana": [0, 43_201],
    "Vida_Maxima": [0, 34_560_001],
    "Cerrar_Otras": [2],
    "Max_Sesiones": [0, 1001],
    "Sustituye": [0],
}


@pytest.mark.parametrize("field", TOO_MUCH)
async def test_integer_field_of_a_login_is_strict(app: Starlette, field: str) -> None:
    client = Client(app, None)
    values: list[tuple[dict[str, str], object]] = [(JSON, bad) for bad in BAD_JSON]
    values += [(FORM, bad) for bad in BAD_FORM]
    values += [(kind, bad) for kind in (JSON, FORM) for bad in TOO_MUCH[field]]
    for kind, value in values:
        reply = await log_in(client, kind, **{field: value})
        check_problem(reply, 422)
        assert bad_fields(reply) == [field], value
    assert await list_user(client, USER) == []


@pytest.mark.parametrize("value", [None, True, 1, 1.5, [], {}])
async def test_previous_token_must_be_a_string(app: Starlette, value: object) -> None:
    reply = await log_in(Client(app, None), JSON, Token_Anterior=value)
    check_problem(reply, 422)
    assert bad_fields(reply) == ["Token_Anterior"]


async def test_window_above_the_life_is_refused(client: Client, media_type: dict[str, str]) -> None:
    for fields in {"Vida_Maxima": 60, "Ventana": 61}, {"Ventana": 43_201}:
        reply = await log_in(client, media_type, **fields)
        check_problem(reply, 422)
        assert bad_fields(reply) == ["Ventana"]


@pytest.mark.parametrize("life", [0, 34_560_001])
async def test_bad_life_is_not_blamed_on_the_window(
    client: Client, media_type: dict[str, str], life: int
) -> None:
    reply = await log_in(client, media_type, Vida_Maxima=life, Ventana=1800)
    assert bad_fields(reply) == ["Vida_Maxima"]


async def test_every_bad_field_of_a_login_is_named_at_once(
    client: Client, media_type: dict[str, str]
) -> None:
    fields = {"Ventana": 0, "Vida_Maxima": 0, "Cerrar_Otras": 2, "Max_Sesiones": 0, "Sustituye": 0}
    reply = await log_in(client, media_type, ID_Usuario=-1, **{**fields, "Dispositivo": ""})
    check_problem(reply, 422)
    assert bad_fields(reply) == ["ID_Usuario", "Dispositivo", *fields]


@pytest.mark.parametrize(
    "field",
    ["Ventana", "Vida_Maxima", "Token_Anterior", "Cerrar_Otras", "Max_Sesiones", "Sustituye"],
)
async def test_repeated_field_is_a_400_in_a_login_and_ignored_elsewhere(
    client: Client, field: str
) -> None:
    value = '"x"' if field == "Token_Anterior" else "1"
    login = f'"ID_Usuario": {USER}, "Dispositivo": "d"'
    twice = f'"{field}": {value}, "{field}": {value}'
    json = f"{{{login}, {twice}}}".encode()
    form = f"ID_Usuario={USER}&Dispositivo=d&{field}=1&{field}=1".encode()
    for kind, body in (JSON, json), (FORM, form):
        check_problem(await client.send("POST", "/sesiones", SERVICE | kind, body), 400)
    assert await list_user(client, USER) == []
    sesion = await client.create()
    put = orjson.dumps(sesion)[:-1] + f", {twice}}}".encode()
    assert (await client.send("PUT", "/sesiones", SERVICE | JSON, put)).status == 200


# SESIONES_AT_LIMIT=refuse


@pytest.fixture
async def refusing(redis_server: RedisServer, redis: "Redis") -> AsyncIterator[Client]:
    settings = Settings(
        redis_url=redis_server.url,
        service_key=(KEY,),
        redis_timeout=5,
        max_per_user=3,
        at_limit="refuse",
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield Client(app, None)


async def test_refusal_lists_the_sessions_and_ends_nothing(
    refusing: Client, media_type: dict[str, str]
) -> None:
    made = [await refusing.create() for _ in range(3)]
    previous = await refusing.create(OTHER_USER)
    for fields in {}, {"Max_Sesiones": 2}, {"Token_Anterior": previous["Token_Sesion"]}:
        reply = await log_in(refusing, media_type, **fields)
        check_problem(reply, 409)
        sessions = reply.json()["Sesiones"]
        assert [list(session) for session in sessions] == [LISTED] * 3
        listed = await refusing.send("GET", f"/sesiones/usuarios/{USER}", SERVICE)
        assert sessions == listed.json()["Sesiones"]
    for sesion in [*made, previous]:
        assert await refusing.alive(sesion["Token_Sesion"])


async def test_refusal_says_how_many_sessions_the_user_has(refusing: Client) -> None:
    for count in "1 sesión", "2 sesiones":
        await refusing.create()
        detail = (await log_in(refusing, JSON, Max_Sesiones=1)).json()["detail"]
        assert detail == f"El usuario ya tiene {count}, y no se permite otra."


async def test_login_after_a_refusal_replaces_the_session_that_was_picked(
    refusing: Client, media_type: dict[str, str]
) -> None:
    made = [await refusing.create() for _ in range(3)]
    picked = (await log_in(refusing, media_type)).json()["Sesiones"][1]["ID_Sesion"]
    reply = await log_in(refusing, media_type, Sustituye=picked)
    assert reply.status == 201
    kept = {sesion["ID_Sesion"] for sesion in made} - {picked}
    assert set(await list_user(refusing, USER)) == kept | {reply.json()["ID_Sesion"]}


@pytest.mark.parametrize("fields", [{"Cerrar_Otras": 1}, {"Max_Sesiones": 3}])
async def test_login_within_the_limit_is_not_refused(
    refusing: Client, media_type: dict[str, str], fields: dict[str, int]
) -> None:
    for _ in range(2):
        await refusing.create()
    assert (await log_in(refusing, media_type, **fields)).status == 201
