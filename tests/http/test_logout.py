"""DELETE /sesiones/logout and /sesiones/logoutAll: statuses, bodies and what ends."""

from collections.abc import Iterable

import orjson
import pytest

from tests.harness.api import (
    BUCKET_MATE,
    FORM,
    JSON,
    LOGOUTS,
    MALFORMED,
    OTHER_USER,
    UNKNOWN,
    Client,
    bad_fields,
    check_problem,
)

pytestmark = pytest.mark.anyio


def designations(token: str) -> Iterable[tuple[dict[str, str], bytes, str]]:
    """Every way to send Token_Sesion: headers, body and query."""
    json, form = orjson.dumps({"Token_Sesion": token}), f"Token_Sesion={token}"
    yield JSON, json, ""
    yield JSON, json.replace(b"s", rb"\u0073"), ""
    yield FORM, form.encode(), ""
    yield {}, b"", form
    yield JSON, b"", form  # a type without a body
    yield {"Content-Type": "text/plain"}, b"", form
    yield JSON, json, form
    yield FORM, form.encode(), form
    yield JSON, b'{"otro": 1}', f"a=1&{form}"
    yield FORM, f"a=%26&{form}".encode(), "a=2"


@pytest.mark.parametrize("path", LOGOUTS)
async def test_token_sesion_is_read_from_body_and_query(client: Client, path: str) -> None:
    for way in range(10):
        token = (await client.create())["Token_Sesion"]
        headers, body, query = list(designations(token))[way]
        reply = await client.send("DELETE", path, headers | {"x-auth-token": token}, body, query)
        assert (reply.status, reply.body) == (200, b'{"Sesiones_Eliminadas":1}')
        assert reply.headers["content-type"] == "application/json"
        assert not await client.alive(token)


@pytest.mark.parametrize("path", LOGOUTS)
@pytest.mark.parametrize(
    ("status", "kind", "body", "query"),
    [
        (415, {}, b"{}", "Token_Sesion=@"),
        (415, {"Content-Type": "text/plain"}, b"x", "Token_Sesion=@"),
        (413, JSON, b" " * 16_385, "Token_Sesion=@"),
        (413, FORM, b"&" * 16_385, "Token_Sesion=@"),
        (400, JSON, b"{", "Token_Sesion=@"),
        (400, FORM, b"Token_Sesion=@&Token_Sesion=@", ""),
        (400, {}, b"", "Token_Sesion=@&Token_Sesion=@"),
        (400, JSON, b'{"Token_Sesion": "@"}', "%u1234"),
        (400, FORM, b"Token_Sesion=@&otro=%4", "Token_Sesion=@"),
        (422, {}, b"", ""),
        (422, FORM, b"", ""),
        (422, JSON, b"{}", "token_sesion=@"),
        (422, JSON, b'{"Token_Sesion": 1}', ""),
        (422, JSON, b'{"Token_Sesion": "@"}', "Token_Sesion=U"),
        (422, FORM, b"Token_Sesion=@", "Token_Sesion="),
    ],
)
async def test_bad_token_sesion_is_refused(
    client: Client, path: str, status: int, kind: dict[str, str], body: bytes, query: str
) -> None:
    token = (await client.create())["Token_Sesion"]
    reply = await client.send(
        "DELETE",
        path,
        kind | {"x-auth-token": token},
        body.replace(b"@", token.encode()),
        query.replace("@", token),
    )
    check_problem(reply, status)
    if status == 422:
        assert bad_fields(reply) == ["Token_Sesion"]
    assert await client.alive(token)


async def test_logout_ends_the_designated_session(client: Client) -> None:
    own, other, third = [(await client.create())["Token_Sesion"] for _ in range(3)]
    reply = await client.end("/sesiones/logout", own, other)
    assert (reply.status, reply.json()) == (200, {"Sesiones_Eliminadas": 1})
    assert [await client.alive(token) for token in (own, other, third)] == [True, False, True]
    reply = await client.end("/sesiones/logout", own, other)  # a lost reply, asked again
    assert (reply.status, reply.json()) == (200, {"Sesiones_Eliminadas": 0})
    assert (await client.end("/sesiones/logout", own, own)).json() == {"Sesiones_Eliminadas": 1}
    check_problem(await client.end("/sesiones/logout", own, own), 401)
    assert await client.alive(third)


async def test_logout_ends_an_inactive_session(client: Client) -> None:
    own, inactive = await client.create(), await client.create()
    await client.put(inactive, Estado_Sesion=0)
    reply = await client.end("/sesiones/logout", own["Token_Sesion"], inactive["Token_Sesion"])
    assert (reply.status, reply.json()) == (200, {"Sesiones_Eliminadas": 1})
    check_problem(await client.put(inactive, Estado_Sesion=1), 404)


@pytest.mark.parametrize(
    "designated",
    [
        UNKNOWN,
        "ses_LGJC5JmzFYT4_snPbryPEo0-We2-ASA-Ns2TRAKTdfaGY",  # another user's, of another bucket
        "ses_eQhdM_NAd2fCrII9FxKhwQXw7RZktjCoT_sZCIXlImGiI",  # another user's, of the same bucket
        MALFORMED,
        "",
        "ñ",
        "\x00",
        "x" * 9000,
    ],
)
async def test_token_sesion_of_no_session_ends_none_in_logout_and_all_in_logout_all(
    client: Client, designated: str
) -> None:
    own, other = [(await client.create())["Token_Sesion"] for _ in range(2)]
    reply = await client.end("/sesiones/logout", own, designated)
    assert (reply.status, reply.json()) == (200, {"Sesiones_Eliminadas": 0})
    assert [await client.alive(token) for token in (own, other)] == [True, True]
    reply = await client.end("/sesiones/logoutAll", own, designated)
    assert (reply.status, reply.json()) == (200, {"Sesiones_Eliminadas": 2})
    assert [await client.alive(token) for token in (own, other)] == [False, False]


@pytest.mark.parametrize("path", LOGOUTS)
async def test_token_sesion_with_a_lone_surrogate_is_that_of_no_session(
    client: Client, path: str
) -> None:
    token = (await client.create())["Token_Sesion"]
    headers = {"x-auth-token": token} | JSON
    reply = await client.send("DELETE", path, headers, rb'{"Token_Sesion": "\ud800"}')
    assert (reply.status, reply.json()) == (
        200,
        {"Sesiones_Eliminadas": 0 if path == "/sesiones/logout" else 1},
    )


@pytest.mark.parametrize("path", LOGOUTS)
@pytest.mark.parametrize("user", [OTHER_USER, BUCKET_MATE])
@pytest.mark.parametrize("state", [0, 1])
async def test_token_sesion_of_another_user_is_a_403(
    client: Client, path: str, user: int, state: int
) -> None:
    own, theirs = await client.create(), await client.create(user)
    await client.put(theirs, Estado_Sesion=state)
    reply = await client.end(path, own["Token_Sesion"], theirs["Token_Sesion"])
    check_problem(reply, 403)
    assert await client.alive(own["Token_Sesion"])
    assert (await client.put(theirs)).status == 200


async def test_logout_all_ends_every_session_of_the_user_alone(client: Client) -> None:
    first, second, inactive = [await client.create() for _ in range(3)]
    others = [await client.create(user) for user in (OTHER_USER, BUCKET_MATE)]
    await client.put(inactive, Estado_Sesion=0)
    reply = await client.end("/sesiones/logoutAll", first["Token_Sesion"], inactive["Token_Sesion"])
    assert (reply.status, reply.body) == (200, b'{"Sesiones_Eliminadas":3}')
    for ended in first, second, inactive:
        check_problem(await client.put(ended, Estado_Sesion=1), 404)
    for other in others:
        assert await client.alive(other["Token_Sesion"])
    again = await client.end("/sesiones/logoutAll", first["Token_Sesion"], first["Token_Sesion"])
    check_problem(again, 401)
