"""The checks, POST and PUT: statuses, headers and bodies.

Each test runs in process and over a socket, unless what it sends only fits one of them.
"""

import gzip
import itertools
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import anyio
import orjson
import pytest
from redis import Redis
from starlette.applications import Starlette

from sesiones import tokens
from tests.harness import asgi
from tests.harness.api import (
    CALLER_ROUTES,
    DEVICE,
    FORM,
    JSON,
    LOGOUTS,
    MALFORMED,
    SERVICE,
    UNKNOWN,
    USER,
    Client,
    bad_fields,
    check_problem,
)
from tests.harness.contract import FIELDS, IDENTITY
from tests.harness.records import record, session_key, write_record
from tests.harness.service import Service

pytestmark = pytest.mark.anyio


def age(redis: "Redis", sesion: dict[str, Any], seconds: int) -> None:
    """Make the session's last use lie further in the past."""
    write_record(redis, session_key(sesion["Token_Sesion"]), actividad=int(time.time()) - seconds)


# GET, HEAD /sesiones/self


async def test_self_is_the_session_in_body_and_headers(client: Client) -> None:
    sesion = await client.create()
    reply = await client.send("GET", "/sesiones/self", {"x-auth-token": sesion["Token_Sesion"]})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    seen = reply.json()
    assert list(seen) == FIELDS
    assert {type(value) for name, value in seen.items() if "_" in name and "Token" not in name} == {
        int
    }
    assert [reply.headers[name] for name in IDENTITY] == [
        str(seen["ID_Usuario"]),
        str(seen["ID_Sesion"]),
        str(seen["Fecha_Expiracion"]),
    ]
    # A second may have passed: the check slides then.
    times = {"Fecha_Expiracion", "Ultima_Actividad"}
    assert {k: v for k, v in seen.items() if k not in times} == {
        k: v for k, v in sesion.items() if k not in times
    }


async def test_head_is_get_without_its_body(redis: "Redis", service: Service) -> None:
    # In process the body is the server's to leave out.
    client = Client(None, service)
    caller = {"x-auth-token": (await client.create())["Token_Sesion"]}
    for headers, path, status in [
        (caller, "/sesiones/self", 200),
        ({}, "/sesiones/self", 401),
        ({}, "/sesiones/verificar", 401),
        (caller, "/sesiones", 200),
        ({}, "/sesiones", 401),
        (SERVICE, f"/sesiones/usuarios/{USER}", 200),
        (caller, "/sesiones/logout", 405),
        (caller, "/", 404),
    ]:
        get = await client.send("GET", path, headers)
        head = await client.send("HEAD", path, headers)
        assert (head.status, head.body) == (get.status, b"") == (status, b"")
        changing = {"date": "", "x-fecha-expiracion": ""}
        assert head.headers | changing == get.headers | changing
        assert head.headers["content-length"] == str(len(get.body))


async def test_check_slides_the_session(client: Client, redis: "Redis") -> None:
    sesion = await client.create()
    for path in "/sesiones/self", "/sesiones/verificar":
        age(redis, sesion, 100)
        caller = {"x-auth-token": sesion["Token_Sesion"]}
        reply = await client.send("GET", path, caller)
        expiry = int(reply.headers["x-fecha-expiracion"])
        assert expiry == redis.expiretime(session_key(sesion["Token_Sesion"]))
        assert int(record(redis, session_key(sesion["Token_Sesion"]))["actividad"]) == (
            expiry - 1800
        )


@pytest.mark.parametrize("value", ["1", "0", "01", "true", "", "1, 1"])
async def test_check_is_no_use_with_the_header_that_says_so(
    client: Client, redis: "Redis", value: str
) -> None:
    """And with no other value of it. On the three paths of a check: the parser, from the third
    request on a template, and Starlette."""
    sesion = await client.create()
    key = session_key(sesion["Token_Sesion"])
    for path in "/sesiones/self", "/sesiones/verificar", "/sesiones/verificar/x":
        for further in {}, {}, {}, {"Expect": "100-continue"}:
            age(redis, sesion, 100)
            before = record(redis, key), redis.expiretime(key)
            headers = {"x-auth-token": sesion["Token_Sesion"], "X-Sin-Deslizar": value}
            reply = await client.send("GET", path, headers | further)
            assert reply.status == 200
            is_use = (record(redis, key), redis.expiretime(key)) != before
            assert is_use == (value != "1")


async def test_other_operations_are_a_use_whatever_the_header_says(
    client: Client, redis: "Redis"
) -> None:
    sesion = await client.create()
    key = session_key(sesion["Token_Sesion"])
    age(redis, sesion, 100)
    before = record(redis, key)["actividad"]
    headers = {"x-auth-token": sesion["Token_Sesion"], "X-Sin-Deslizar": "1"}
    assert (await client.send("GET", "/sesiones", headers)).status == 200
    assert record(redis, key)["actividad"] != before


# 401


async def test_401_is_the_same_for_every_reason(client: Client, redis: "Redis") -> None:
    expired, revoked, inactive = [await client.create() for _ in range(3)]
    redis.delete(session_key(expired["Token_Sesion"]))
    end = await client.end("/sesiones/logout", revoked["Token_Sesion"], revoked["Token_Sesion"])
    assert end.status == 200
    assert (await client.put(inactive, Estado_Sesion=0)).status == 200
    tokens_ = [UNKNOWN, MALFORMED, "", "x"]
    tokens_ += [sesion["Token_Sesion"] for sesion in (expired, revoked, inactive)]
    bodies = set()
    for method, path in CALLER_ROUTES:
        missing = await client.send(method, path)
        assert missing.headers["www-authenticate"] == 'Bearer realm="sesiones"'
        replies = [missing]
        for token in tokens_:
            for headers in {"x-auth-token": token}, {"Authorization": f"Bearer {token}"}:
                reply = await client.send(method, path, headers)
                challenge = 'Bearer realm="sesiones", error="invalid_token"'
                assert reply.headers["www-authenticate"] == challenge
                replies.append(reply)
        for reply in replies:
            if method == "HEAD":
                assert reply.status == 401
            else:
                check_problem(reply, 401)
                bodies.add(reply.body)
    for method in "POST", "PUT":
        reply = await client.send(method, "/sesiones")
        check_problem(reply, 401)
        bodies.add(reply.body)
    assert len(bodies) == 1


@pytest.mark.parametrize(("method", "path"), CALLER_ROUTES)
async def test_not_exactly_one_credential_is_a_401(app: Starlette, method: str, path: str) -> None:
    # In process: http.client sends no header twice.
    token = (await Client(app, None).create())["Token_Sesion"]
    x_auth, bearer = ("x-auth-token", token), ("authorization", f"Bearer {token}")
    basic = ("authorization", "Basic dTpw")
    for headers in [x_auth, x_auth], [bearer, bearer], [x_auth, bearer], [bearer, basic]:
        reply = await asgi.request(app, method, path, headers)
        assert reply.status == 401
        assert reply.headers["www-authenticate"].endswith('error="invalid_token"')
    for headers in [x_auth], [bearer], [x_auth, basic]:
        assert (await asgi.request(app, method, path, headers)).status in (200, 422)


async def test_session_of_a_bad_record_is_a_401(client: Client, redis: "Redis") -> None:
    sesion, good = await client.create(), await client.create()
    redis.hset(session_key(sesion["Token_Sesion"]), "1", "x")
    for method, path in CALLER_ROUTES:
        reply = await client.send(method, path, {"x-auth-token": sesion["Token_Sesion"]})
        assert reply.status == 401
    assert await client.alive(good["Token_Sesion"])


# /sesiones/verificar


@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE"],
)
async def test_verificar_takes_any_method(client: Client, method: str) -> None:
    sesion = await client.create()
    for body in b"", b"{nada", b"x" * 20_000:
        headers = {"x-auth-token": sesion["Token_Sesion"], "Content-Type": "text/plain"}
        reply = await client.send(method, "/sesiones/verificar", headers, body, "a=%FF&a&&=")
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["content-length"] == "0"
        assert reply.headers["x-id-usuario"] == str(USER)
        assert reply.headers["x-id-sesion"] == str(sesion["ID_Sesion"])
        assert int(reply.headers["x-fecha-expiracion"]) >= sesion["Fecha_Expiracion"]


@pytest.mark.parametrize(
    "below",
    [
        *("", "/", "//", "/sesiones", "/..", "/../self", "/%", "/a\n", "/\n/", "/a\r\nx: y"),
        *("/\x00", "/ñ/😀", "/a;b?c#d", "/" + "a" * 8000),
    ],
)
async def test_verificar_takes_anything_below(client: Client, below: str) -> None:
    caller = {"x-auth-token": (await client.create())["Token_Sesion"]}
    path = f"/sesiones/verificar{below}"
    reply = await client.send("PATCH", path, caller)
    assert (reply.status, reply.body) == (200, b"")
    check_problem(await client.send("PATCH", path), 401)


async def test_verificar_takes_any_encoded_path_below(redis: "Redis", service: Service) -> None:
    caller = {"x-auth-token": (await Client(None, service).create())["Token_Sesion"]}
    for below in "/a%2Fb", "/%2F", "/%2e%2e/self", "/%0A", "/%00", "/%FF", "/%", "/%zz", "//?//":
        reply = service.request("GET", f"/sesiones/verificar{below}", caller)
        assert (reply.status, reply.body) == (200, b"")


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/sesiones/", "/sesiones/self/", "/sesiones/logout/", "/sesiones/logoutAll/"),
        *("/sesiones/logoutall", "/Sesiones/self", "/sesiones/SELF", "//sesiones"),
        *("/sesiones//self", "/./sesiones/self", "/sesiones/../sesiones/self", "/sesiones/self/x"),
        *("/sesiones/self;x", "/sesiones/self ", "/sesiones/self\n", "/sesiones/self\x00"),
        *("/sesiones\n", "/\n/sesiones/self", "/sesiones/verificar\n", "/sesiones/verificarx"),
        *("/sesiones/verifica", "//sesiones/verificar", "/sesiones/\u017felf"),
    ],
)
async def test_unknown_path_is_a_404(client: Client, path: str) -> None:
    # 404 comes before 405 and 401, and nothing redirects.
    caller = {"x-auth-token": (await client.create())["Token_Sesion"]}
    for method in "GET", "POST", "DELETE":
        reply = await client.send(method, path, caller)
        check_problem(reply, 404)
        assert "location" not in reply.headers


async def test_unknown_path_leads_to_the_documentation(client: Client) -> None:
    for path in "/", "/nada", "/sesiones/":
        reply = await client.send("GET", path)
        check_problem(reply, 404)
        assert "/docs" in reply.json()["detail"]
    assert (await client.send("GET", "/docs")).status == 200


# POST /sesiones


async def test_create_returns_a_new_session(client: Client, redis: "Redis") -> None:
    before = redis.time()[0]
    sesion = await client.create()
    after = redis.time()[0]
    assert list(sesion) == FIELDS
    assert tokens.is_well_formed(sesion["Token_Sesion"])
    assert sesion["ID_Sesion"] >= 1
    assert (sesion["ID_Usuario"], sesion["Dispositivo"]) == (USER, DEVICE)
    assert before <= sesion["Fecha_Inicio"] == sesion["Ultima_Actividad"] <= after
    assert sesion["Fecha_Expiracion"] == sesion["Fecha_Inicio"] + 1800
    assert sesion["Estado_Sesion"] == 1
    another = await client.create()
    assert another["ID_Sesion"] != sesion["ID_Sesion"]
    assert another["Token_Sesion"] != sesion["Token_Sesion"]


@pytest.mark.parametrize(
    ("content_type", "encode"),
    [
        ("application/json", orjson.dumps),
        ("application/json; charset=utf-8", orjson.dumps),
        ("Application/JSON;charset=latin-1", orjson.dumps),
        ("application/x-www-form-urlencoded", lambda members: urlencode(members).encode()),
        ("application/x-www-form-urlencoded; x=y", lambda members: urlencode(members).encode()),
    ],
)
async def test_create_reads_json_and_forms(
    client: Client, content_type: str, encode: Callable[[dict[str, Any]], bytes]
) -> None:
    for device in "d", "ñ+&=%", "😀" * 512:
        body = encode({"ID_Usuario": 2**53 - 1, "Dispositivo": device, "otro": "sí"})
        reply = await client.send(
            "POST", "/sesiones", SERVICE | {"Content-Type": content_type}, body, "ID_Usuario=1"
        )
        assert reply.status == 201
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["ID_Usuario"] == 2**53 - 1
        assert reply.json()["Dispositivo"] == device


async def test_token_is_ignored_beside_a_service_key(client: Client) -> None:
    body = b'{"ID_Usuario": 7, "Dispositivo": "d"}'
    headers = SERVICE | JSON | {"x-auth-token": "x"}
    assert (await client.send("POST", "/sesiones", headers, body)).status == 201


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "", "text/plain", "text/json", "application/jsonx", "application/problem+json"),
        *("multipart/form-data; boundary=x", "application/json, application/json", "application"),
        ";application/json",
    ],
)
async def test_unsupported_content_type_is_a_415(
    client: Client, method: str, content_type: str | None
) -> None:
    headers = SERVICE | ({} if content_type is None else {"Content-Type": content_type})
    reply = await client.send(method, "/sesiones", headers, b"{}")
    check_problem(reply, 415)
    detail = reply.json()["detail"]
    assert "application/json o application/x-www-form-urlencoded" in detail
    assert ("Falta Content-Type" in detail) == (not content_type)
    # RFC 9110, 12.5.3: it would blame the coding.
    assert "accept-encoding" not in reply.headers


async def test_repeated_content_type_is_a_415(app: Starlette) -> None:
    headers = [*SERVICE.items(), *JSON.items(), *JSON.items()]
    reply = await asgi.request(app, "POST", "/sesiones", headers, b"{}")
    check_problem(reply, 415)
    assert "Falta" not in reply.json()["detail"]


CODINGS = ["gzip", "GZIP", "x-gzip", "br", "deflate", "zstd", "aes128gcm", "*", "identity, gzip"]
CODINGS += ["gzip, identity", "identity;q=1", "utf-8", "chunked", "identity gzip"]


@pytest.mark.parametrize("kind", [JSON, FORM, {}])
@pytest.mark.parametrize("coding", CODINGS)
async def test_coded_body_is_a_415_that_says_what_is_accepted(
    client: Client, coding: str, kind: dict[str, str]
) -> None:
    token = (await client.create())["Token_Sesion"]
    coded = kind | {"Content-Encoding": coding}
    plain = {"ID_Usuario": "7", "Dispositivo": "d", "Token_Sesion": token}
    texts = urlencode(plain).encode(), orjson.dumps(plain | {"ID_Usuario": 7})
    for body in *texts, *map(gzip.compress, texts), b" " * 17_000:
        for method, path, credential in (
            ("POST", "/sesiones", SERVICE),
            ("PUT", "/sesiones", SERVICE),
            *(("DELETE", path, {"x-auth-token": token}) for path in LOGOUTS),
        ):
            reply = await client.send(method, path, credential | coded, body)
            check_problem(reply, 415)
            assert reply.headers["accept-encoding"] == "identity"
            check_problem(await client.send(method, path, coded, body), 401)
    assert await client.alive(token)


@pytest.mark.parametrize(
    "coding", ["identity", "Identity", "", " identity , identity", ",identity"]
)
async def test_identity_is_no_coding(client: Client, coding: str) -> None:
    headers = SERVICE | JSON | {"Content-Encoding": coding}
    body = b'{"ID_Usuario": 7, "Dispositivo": "d"}'
    assert (await client.send("POST", "/sesiones", headers, body)).status == 201


async def test_coding_of_a_repeated_field_counts(app: Starlette) -> None:
    for codings in ("identity", "gzip"), ("gzip", "identity"), ("", "br"):
        fields = [("Content-Encoding", coding) for coding in codings]
        reply = await asgi.request(
            app, "POST", "/sesiones", [*SERVICE.items(), *JSON.items(), *fields], b"{}"
        )
        check_problem(reply, 415)
        assert reply.headers["accept-encoding"] == "identity"


async def test_coding_counts_only_where_a_body_is_read(client: Client) -> None:
    coded = {"Content-Encoding": "gzip"}
    for path in LOGOUTS:
        caller = {"x-auth-token": (await client.create())["Token_Sesion"]}
        for method, ignoring in ("GET", "/sesiones/self"), ("POST", "/sesiones/verificar"):
            assert (await client.send(method, ignoring, caller | coded, b"x")).status == 200
        query = f"Token_Sesion={caller['x-auth-token']}"
        assert (await client.send("DELETE", path, caller | coded, b"", query)).status == 200


@pytest.mark.parametrize("kind", [JSON, FORM])
async def test_body_over_16_kib_is_a_413(client: Client, kind: dict[str, str]) -> None:
    members = {"ID_Usuario": 7, "Dispositivo": "d", "relleno": ""}
    body = orjson.dumps(members) if kind is JSON else urlencode(members).encode()
    padding = b"x" * (16 * 1024 - len(body))
    full = body.replace(b'""', b'"%b"' % padding) if kind is JSON else body + padding
    assert len(full) == 16 * 1024
    assert (await client.send("POST", "/sesiones", SERVICE | kind, full)).status == 201
    for size in 1, 1000, 200_000:
        reply = await client.send("POST", "/sesiones", SERVICE | kind, full + b" " * size)
        check_problem(reply, 413)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b""),
        (JSON, b"[]"),
        (JSON, b'{"ID_Usuario": 1, "ID_Usuario": 1, "Dispositivo": "d"}'),
        (FORM, b"ID_Usuario=1&Dispositivo=%FF"),
    ],
)
async def test_malformed_body_is_a_400(
    client: Client, method: str, kind: dict[str, str], body: bytes
) -> None:
    """What counts as malformed: test_requests.py."""
    check_problem(await client.send(method, "/sesiones", SERVICE | kind, body), 400)


@pytest.mark.parametrize(
    ("kind", "body", "fields"),
    [
        (JSON, b"{}", ["ID_Usuario", "Dispositivo"]),
        (JSON, b'{"ID_Usuario": true, "Dispositivo": "d"}', ["ID_Usuario"]),
        (FORM, b"ID_Usuario=01&Dispositivo=%00", ["ID_Usuario", "Dispositivo"]),
    ],
)
async def test_create_names_bad_fields(
    client: Client, kind: dict[str, str], body: bytes, fields: list[str]
) -> None:
    """Which values are bad: test_requests.py."""
    reply = await client.send("POST", "/sesiones", SERVICE | kind, body)
    check_problem(reply, 422)
    assert bad_fields(reply) == fields


# PUT /sesiones


def dump(redis: "Redis") -> object:
    """Everything in Redis, with its expiries."""
    return {
        name: (redis.dump(name), redis.pexpiretime(name)) for name in redis.scan_iter(count=1000)
    }


async def test_put_of_what_self_returned_changes_nothing(client: Client, redis: "Redis") -> None:
    sesion = await client.create()
    for seconds in 0, 100:
        age(redis, sesion, seconds)
        caller = {"x-auth-token": sesion["Token_Sesion"]}
        seen = await client.send("GET", "/sesiones/self", caller)
        before = dump(redis)
        for kind, body in [
            (JSON, seen.body),
            (FORM, urlencode(seen.json()).encode()),
        ]:
            reply = await client.send("PUT", "/sesiones", SERVICE | kind, body)
            assert (reply.status, reply.body) == (200, seen.body)
            assert reply.headers["content-type"] == "application/json"
            assert dump(redis) == before


async def test_put_changes_what_may_change(client: Client, redis: "Redis") -> None:
    sesion = await client.create()
    expiry = sesion["Ultima_Actividad"] + 600
    reply = await client.put(sesion, Dispositivo="otro", Fecha_Expiracion=expiry)
    assert reply.status == 200
    assert list(reply.json()) == FIELDS
    assert reply.json() == sesion | {"Dispositivo": "otro", "Fecha_Expiracion": expiry}
    assert redis.expiretime(session_key(sesion["Token_Sesion"])) == expiry


async def test_put_never_takes_activity_back_or_beyond_now(client: Client, redis: "Redis") -> None:
    sesion = await client.create()
    stored = sesion["Ultima_Actividad"]
    reply = await client.put(sesion, Ultima_Actividad=0)
    assert reply.json()["Ultima_Actividad"] == stored
    reply = await client.put(sesion, Ultima_Actividad=stored + 10_000)
    now = redis.time()[0]
    assert stored <= reply.json()["Ultima_Actividad"] <= now


async def test_put_deactivates_and_activates(client: Client) -> None:
    sesion = await client.create()
    token = sesion["Token_Sesion"]
    for state in 0, 0, 1, 0, 1:
        reply = await client.put(sesion, Estado_Sesion=state)
        assert (reply.status, reply.json()["Estado_Sesion"]) == (200, state)
        for path in "/sesiones/self", "/sesiones/verificar":
            checked = await client.send("GET", path, {"x-auth-token": token})
            assert checked.status == (200 if state else 401)
        for path in LOGOUTS if state == 0 else ():
            check_problem(await client.end(path, token, token), 401)


async def test_put_names_every_bad_field(client: Client) -> None:
    sesion = await client.create()
    reply = await client.send("PUT", "/sesiones", SERVICE | JSON, b"{}")
    check_problem(reply, 422)
    assert bad_fields(reply) == FIELDS
    for campo in FIELDS:
        reply = await client.put(sesion, **{campo: None})
        check_problem(reply, 422)
        assert bad_fields(reply) == [campo]


async def test_put_of_no_live_session_is_a_404(client: Client, redis: "Redis") -> None:
    ended, dead = await client.create(), await client.create()
    await client.end("/sesiones/logout", ended["Token_Sesion"], ended["Token_Sesion"])
    redis.delete(session_key(dead["Token_Sesion"]))
    for token in ended["Token_Sesion"], dead["Token_Sesion"], UNKNOWN, MALFORMED, "", "ñ", "\x00":
        check_problem(await client.put(ended, Token_Sesion=token), 404)
    body = orjson.dumps(dead).replace(dead["Token_Sesion"].encode(), rb"\ud800")
    check_problem(await client.send("PUT", "/sesiones", SERVICE | JSON, body), 404)
    # A PUT brings nothing back.
    assert list(redis.scan_iter("*:h:*", count=1000)) == []


async def test_put_that_changes_immutable_fields_is_a_409(client: Client, redis: "Redis") -> None:
    sesion = await client.create()
    immutable = ["ID_Sesion", "ID_Usuario", "Fecha_Inicio"]
    before = dump(redis)
    for count in 1, 2, 3:
        for fields in itertools.combinations(immutable, count):
            changes = {campo: sesion[campo] + 1 for campo in fields}
            reply = await client.put(sesion, Estado_Sesion=0, Dispositivo="otro", **changes)
            check_problem(reply, 409)
            assert bad_fields(reply) == list(fields)
    assert dump(redis) == before


async def test_put_of_impossible_dates_is_a_422(client: Client, redis: "Redis") -> None:
    sesion = await client.create()
    age(redis, sesion, 100)
    stored = record(redis, session_key(sesion["Token_Sesion"]))
    start, last_use = int(stored["inicio"]), int(stored["actividad"])
    sesion["Fecha_Inicio"] = start
    before = dump(redis)
    for changes in [
        {"Fecha_Expiracion": start, "Ultima_Actividad": start},  # no window
        {"Fecha_Expiracion": start - 1, "Ultima_Actividad": start},
        {"Fecha_Expiracion": 0, "Ultima_Actividad": 0},
        {"Fecha_Expiracion": start + 43201},  # beyond the longest life
        {"Fecha_Expiracion": 2**53 - 1},
        {"Fecha_Expiracion": last_use + 50, "Ultima_Actividad": last_use},  # already past
    ]:
        reply = await client.put(sesion, Dispositivo="otro", Estado_Sesion=0, **changes)
        check_problem(reply, 422)
        assert bad_fields(reply) == ["Fecha_Expiracion"]
    assert dump(redis) == before
    reply = await client.put(sesion, Fecha_Expiracion=start + 43200)
    assert reply.status == 200


async def test_session_is_refused_once_it_has_expired(app: Starlette) -> None:
    client = Client(app, None)
    sesion = await client.create()
    token, last_use = sesion["Token_Sesion"], sesion["Ultima_Actividad"]
    reply = await client.put(sesion, Fecha_Expiracion=last_use + 2)
    if reply.status == 200:  # else the machine was too slow: it would be past already
        deadline = time.monotonic() + 5
        while (await client.put(sesion, Fecha_Expiracion=last_use + 2)).status != 404:
            assert time.monotonic() < deadline
            await anyio.sleep(0.05)
        assert time.time() >= last_use + 2
        check_problem(await client.send("GET", "/sesiones/self", {"x-auth-token": token}), 401)
