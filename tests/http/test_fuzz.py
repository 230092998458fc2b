"""Whatever comes in, only documented answers go out. SESIONES_TEST_EXAMPLES sets for how long."""

import json
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from redis import Redis
from starlette.applications import Starlette

from sesiones import logs, tokens
from tests.harness import asgi
from tests.harness.api import FIELDS, Client, check_problem
from tests.harness.service import Reply, Service
from tests.harness.stores import EXAMPLES, KEY
from tests.harness.wire import check, chunks, parse, post

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_error_logged")]

# The application, its Redis and the service outlive an example, and may: examples end sessions,
# and every one makes its own.
many = settings(
    max_examples=16 * EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SELF, VERIFY = ("GET", "/sesiones/self"), ("GET", "/sesiones/verificar")
POST, PUT = ("POST", "/sesiones"), ("PUT", "/sesiones")
LOGOUT, LOGOUT_ALL = ("DELETE", "/sesiones/logout"), ("DELETE", "/sesiones/logoutAll")
BODY = {400, 401, 413, 415, 422}
DOCUMENTED: dict[tuple[str, str], set[int]] = {
    SELF: {200, 401},
    VERIFY: {200, 401},
    POST: {201} | BODY,
    PUT: {200, 404, 409} | BODY,
    LOGOUT: {200, 403} | BODY,
    LOGOUT_ALL: {200, 403} | BODY,
}
OTHERS = {*logs.PROBE_PATHS, "/metrics", "/openapi.json", "/docs"}

TYPES = ["application/json", "application/x-www-form-urlencoded"]
TOKEN = tokens.make(7)
BOUNDARIES = [-1, -0, 0, 1, 2, 2**31, 2**53 - 1, 2**53, 2**63, 2**64, 10**30]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(BOUNDARIES)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)


def check_answer(reply: Reply, method: str, path: str, documented: set[int]) -> None:
    """A documented status, and all that comes with it."""
    assert reply.status in documented, reply
    assert reply.headers["cache-control"] == "no-store"
    identity = {"x-id-usuario", "x-id-sesion", "x-fecha-expiracion"} & set(reply.headers)
    checked = reply.status == 200 and path.startswith(("/sesiones/self", "/sesiones/verificar"))
    assert len(identity) == (3 if checked else 0)
    assert "dispositivo" not in repr(reply.headers).lower()
    if reply.status >= 400:
        check_problem(reply, reply.status)
    elif path.startswith("/sesiones/verificar"):
        assert (reply.body, reply.headers["content-length"]) == (b"", "0")
    else:
        assert reply.headers["content-type"] == "application/json"
        members = ["Sesiones_Eliminadas"] if method == "DELETE" else FIELDS
        assert list(reply.json()) == members


async def send(
    app: Starlette,
    endpoint: tuple[str, str],
    headers: list[tuple[str | bytes, str | bytes]],
    body: bytes = b"",
    query: bytes = b"",
) -> Reply:
    method, path = endpoint
    reply = await asgi.request(app, method, path, headers, body, query)
    check_answer(reply, method, path, DOCUMENTED[endpoint])
    return reply


# What a caller could send instead of, or beside, a good credential.
CREDENTIALS = st.lists(
    st.tuples(
        st.sampled_from(["x-auth-token", "authorization"]),
        st.binary(max_size=60)
        | st.sampled_from([TOKEN, f"Bearer {TOKEN}", f"bearer  {KEY}", "Bearer", "Basic dTpw"])
        | st.binary(max_size=3).map(lambda tail: TOKEN.encode() + tail)
        | st.binary(max_size=3).map(lambda tail: b"Bearer " + KEY.encode() + tail),
    ),
    max_size=3,
)


@given(endpoint=st.sampled_from(list(DOCUMENTED)), headers=CREDENTIALS, body=st.binary())
@many
async def test_any_credentials(
    app: Starlette,
    endpoint: tuple[str, str],
    headers: list[tuple[str | bytes, str | bytes]],
    body: bytes,
) -> None:
    await send(app, endpoint, [*headers, ("content-type", TYPES[0])], body)


@given(
    endpoint=st.sampled_from(list(DOCUMENTED)),
    content_types=st.lists(
        st.sampled_from(TYPES) | st.text(st.characters(max_codepoint=255), max_size=40), max_size=2
    )
    | st.sampled_from(TYPES).map(lambda media_type: [media_type]),
    body=st.binary()
    | st.text().map(str.encode)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(min_size=1).map(lambda piece: piece * (20_000 // len(piece))),
    query=st.binary() | st.sampled_from([b"Token_Sesion=x", b"Token_Sesion=%FF", b"a&a"]),
)
@many
async def test_any_bytes(
    app: Starlette,
    endpoint: tuple[str, str],
    content_types: list[str],
    body: bytes,
    query: bytes,
) -> None:
    token = (await Client(app, None).create())["Token_Sesion"]
    service = endpoint in (POST, PUT)
    headers: list[tuple[str | bytes, str | bytes]] = [
        ("authorization", f"Bearer {KEY if service else token}"),
        *(("content-type", value) for value in content_types),
    ]
    await send(app, endpoint, headers, body, query)


@given(
    endpoint=st.sampled_from([POST, PUT, LOGOUT, LOGOUT_ALL]),
    spoiled=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
    missing=st.sets(st.sampled_from(FIELDS), max_size=1),
    extra=st.dictionaries(st.text(max_size=8), VALUES, max_size=2),
    shift=st.sampled_from([None, "Fecha_Inicio", "Fecha_Expiracion", "Ultima_Actividad"]),
    by=st.integers(-50_000, 50_000),
    ascii_only=st.booleans(),
)
@many
async def test_nearly_valid_objects(
    app: Starlette,
    endpoint: tuple[str, str],
    spoiled: dict[str, Any],
    missing: set[str],
    extra: dict[str, Any],
    shift: str | None,
    by: int,
    ascii_only: bool,
) -> None:
    sesion = await Client(app, None).create()
    token = sesion["Token_Sesion"]
    if shift is not None:
        sesion[shift] += by
    members = {**extra, **sesion, **spoiled}
    for campo in missing:
        del members[campo]
    body = json.dumps(members, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    service = endpoint in (POST, PUT)
    await send(
        app,
        endpoint,
        [
            ("authorization", f"Bearer {KEY if service else token}"),
            ("content-type", TYPES[0]),
        ],
        body,
    )
    # Whatever became of the request, the session is alive, was deactivated or has ended.
    await send(app, SELF, [("x-auth-token", token)])


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "MKCOL"]),
    # Hypothesis also tries what it finds in our source: the paths that are no sessions'.
    path=st.text(st.characters(exclude_categories=["Cs"])).filter(lambda path: path not in OTHERS)
    | st.tuples(
        st.sampled_from([path for _, path in DOCUMENTED]),
        st.text("/.\n\x00 %aA?#;", max_size=3),
    ).map("".join),
)
@many
async def test_any_path(app: Starlette, method: str, path: str) -> None:
    reply = await asgi.request(app, method, path)
    known = {known for known in DOCUMENTED if known[1] == path}
    if path == VERIFY[1] or path.startswith(f"{VERIFY[1]}/"):
        expected = 401
    elif not known:
        expected = 404
    elif method not in {known_method for known_method, _ in known} | (
        {"HEAD"} if path == SELF[1] else set()
    ):
        expected = 405
    else:
        expected = 401
    check_answer(reply, method, path, {expected})


# Over a socket

SEEDS = [
    check(TOKEN.encode()),
    check(TOKEN.encode(), line=b"GET /sesiones/self HTTP/1.1"),
    check(TOKEN.encode(), b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    post(b"Content-Length: 2\r\n", body=b"{}"),
    post(b"Content-Length: 35\r\n", body=b'{"ID_Usuario":7, "Dispositivo":"d"}'),
    post(b"Transfer-Encoding: chunked\r\n", body=chunks(b'{"ID_Usuario": 1}', 5)),
    post(b"Content-Length: 2\r\nExpect: 100-continue\r\n", body=b"{}"),
    check(TOKEN.encode(), line=b"DELETE /sesiones/logout?Token_Sesion=x HTTP/1.0"),
]
PIECES = st.binary(max_size=3) | st.sampled_from(
    [b"\r\n", b"\r\n\r\n", b": ", b" ", b"0", b"\x00", b"Content-Length: 5\r\n", b"chunked"]
)


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Requests one behind the other, with a few bytes cut out, put in or replaced."""
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(PIECES) + data[at + draw(st.integers(0, 5)) :]
    return data


@given(data=st.binary(max_size=300) | mangled(), cuts=st.lists(st.integers(1, 400), max_size=2))
@many
def test_any_bytes_over_a_socket(
    service: Service, redis: "Redis", data: bytes, cuts: list[int]
) -> None:
    assume(b"HEAD" not in data)
    creation = b'{"ID_Usuario": 7, "Dispositivo": "d"}'
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": TYPES[0]}
    token = service.request("POST", "/sesiones", headers, creation).json()["Token_Sesion"]
    data = data.replace(TOKEN.encode(), token.encode())
    received = bytearray()
    with service.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(6)
        try:
            start = 0
            for end in [*sorted(cuts), len(data)]:
                connection.sendall(data[start:end])
                start = end
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            pytest.fail("the service hangs")
        except OSError:
            # What comes behind a request that closes the connection may meet a closed socket.
            return
    # No answer is to a HEAD, so each has its body.
    for reply in parse(bytes(received)):
        if reply.status != 100:
            assert reply.status in {200, 201, 400, 401, 404, 405, 413, 415, 422, 431}, reply
            if reply.status >= 400:
                check_problem(reply, reply.status)


def test_the_service_goes_on(service: Service) -> None:
    # After all of that: this is the last test of the file.
    reply = service.request("GET", "/sesiones/self", {"x-auth-token": TOKEN})
    check_problem(reply, 401)
