"""Introspection (RFC 7662) and revocation (RFC 7009) for OAuth clients of the backend."""

import pytest
from redis import Redis

from sesiones.sesion import Sesion
from tests.harness.api import (
    FORM,
    INTROSPECTION,
    JSON,
    MALFORMED,
    REVOCATION,
    SERVICE,
    UNKNOWN,
    USER,
    Client,
    caller,
    check_problem,
    list_user,
    post,
)
from tests.harness.records import age, session_key

pytestmark = pytest.mark.anyio


async def test_introspection_of_a_live_token_is_active_and_tells_whose_it_is(
    client: Client, redis: "Redis"
) -> None:
    sesion = await client.create()
    age(redis, Sesion(**sesion), 100)
    reply = await post(client, INTROSPECTION, sesion["Token_Sesion"])
    expiry = redis.expiretime(session_key(sesion["Token_Sesion"]))
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json().items()) == [
        ("active", True),
        ("sub", str(USER)),
        ("sid", str(sesion["ID_Sesion"])),
        ("iat", sesion["Fecha_Inicio"] - 100),
        ("exp", expiry),
        ("token_type", "Bearer"),
    ]
    assert expiry > sesion["Fecha_Expiracion"] - 100  # a use of the session


async def test_introspection_of_any_other_token_is_inactive(client: Client) -> None:
    ended, inactive = await client.create(), await client.create()
    await client.send("DELETE", f"/sesiones/{ended['ID_Sesion']}", caller(ended))
    await client.put(inactive, Estado_Sesion=0)
    for token in ended["Token_Sesion"], inactive["Token_Sesion"], UNKNOWN, MALFORMED, " ", "ñ":
        reply = await post(client, INTROSPECTION, token)
        assert (reply.status, reply.body) == (200, b'{"active":false}')


async def test_revocation_answers_the_same_whatever_the_token(client: Client) -> None:
    live, inactive = await client.create(), await client.create()
    await client.put(inactive, Estado_Sesion=0)
    tokens = [live["Token_Sesion"], inactive["Token_Sesion"]]
    for token in [*tokens, *tokens, UNKNOWN, MALFORMED, "ñ"]:
        reply = await post(client, REVOCATION, token)
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["content-length"] == "0"
        assert "content-type" not in reply.headers
    assert await list_user(client, USER) == []


@pytest.mark.parametrize("path", [INTROSPECTION, REVOCATION])
@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (401, {}, b"token=@"),
        (401, FORM, b"token=@"),
        (401, {"Authorization": f"Bearer {UNKNOWN}"} | FORM, b"token=@"),
        (401, {"x-auth-token": UNKNOWN} | FORM, b"token=@"),
        (401, {"Authorization": "Basic dTpw"} | FORM, b"token=@"),
        (415, SERVICE, b"token=@"),
        (415, SERVICE | JSON, b'{"token": "@"}'),
        (415, SERVICE | JSON, b" " * 17_000),
        (415, SERVICE | FORM | {"Content-Encoding": "gzip"}, b"token=@"),
        (413, SERVICE | FORM, b"token=@&%" + b"x" * 16_384),
        (400, SERVICE | FORM, b""),
        (400, SERVICE | FORM, b"token="),
        (400, SERVICE | FORM, b"Token=@"),
        (400, SERVICE | FORM, b"Token_Sesion=@"),
        (400, SERVICE | FORM, b"token=@&token=@"),
        (400, SERVICE | FORM, b"token=@&x=%zz"),
        (400, SERVICE | FORM, b"token=%FF"),
    ],
)
async def test_bad_oauth_request_is_refused_in_the_order_of_the_row(
    client: Client, path: str, status: int, headers: dict[str, str], body: bytes
) -> None:
    sesion = await client.create()
    sent = body.replace(b"@", sesion["Token_Sesion"].encode())
    check_problem(await client.send("POST", path, headers, sent), status)
    assert await client.alive(sesion["Token_Sesion"])


@pytest.mark.parametrize("path", [INTROSPECTION, REVOCATION])
async def test_token_in_the_query_does_not_count(client: Client, path: str) -> None:
    token = (await client.create())["Token_Sesion"]
    reply = await client.send("POST", path, SERVICE | FORM, b"", f"token={token}")
    check_problem(reply, 400)
    assert await client.alive(token)


async def test_oauth_request_may_have_other_parameters(client: Client) -> None:
    token = (await client.create())["Token_Sesion"]
    body = f"token_type_hint=access_token&token={token}&client_id=a&client_id=b".encode()
    media_type = {"Content-Type": "Application/X-WWW-Form-Urlencoded; charset=latin-1"}
    reply = await client.send("POST", INTROSPECTION, SERVICE | media_type, body)
    assert reply.json()["active"] is True
    assert (await client.send("POST", REVOCATION, SERVICE | media_type, body)).status == 200
    assert not await client.alive(token)
