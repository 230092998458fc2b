"""The order of the errors of each route, and its 503."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from tests.harness.api import (
    BACKEND_ROUTES,
    CALLER_ROUTES,
    FORM,
    JSON,
    LOGOUTS,
    MALFORMED,
    OTHER_USER,
    SERVICE,
    UNKNOWN,
    Client,
    check_problem,
    open_app,
)
from tests.harness.contract import FIELDS, OPERATIONS
from tests.harness.service import Reply, Service
from tests.harness.stores import KEY
from tests.harness.wire import CHUNKED, HOST, check, check_refusal, talk

pytestmark = pytest.mark.anyio


@dataclass
class Draft:
    """A good request, for faults to spoil."""

    method: str
    path: str
    members: dict[str, Any]
    headers: dict[str, str]
    query: str = ""
    tail: bytes = b""
    padding: bytes = b""
    others_token: str = ""

    async def send(self, client: Client) -> Reply:
        body = orjson.dumps(self.members) + self.tail + self.padding
        return await client.send(self.method, self.path, self.headers, body, self.query)


def wrong_path(draft: Draft) -> None:
    draft.path += "/"


def wrong_method(draft: Draft) -> None:
    draft.method = "PATCH"


def no_credential(draft: Draft) -> None:
    draft.headers.pop("Authorization", None)
    draft.headers.pop("x-auth-token", None)


def wrong_type(draft: Draft) -> None:
    draft.headers["Content-Type"] = "text/plain"


def coded(draft: Draft) -> None:
    draft.headers["Content-Encoding"] = "gzip"


def too_large(draft: Draft) -> None:
    draft.padding = b" " * 17_000


def malformed(draft: Draft) -> None:
    draft.tail = b"}"


def malformed_query(draft: Draft) -> None:
    draft.query = "a=%FF"


def bad_device(draft: Draft) -> None:
    draft.members["Dispositivo"] = ""


def no_designation(draft: Draft) -> None:
    del draft.members["Token_Sesion"]


def no_session(draft: Draft) -> None:
    draft.members["Token_Sesion"] = UNKNOWN


def immutable(draft: Draft) -> None:
    draft.members["ID_Usuario"] += 1


def bad_dates(draft: Draft) -> None:
    draft.members["Fecha_Expiracion"] = 0


def others_session(draft: Draft) -> None:
    if "Token_Sesion" in draft.members:
        draft.members["Token_Sesion"] = draft.others_token


Fault = tuple[int, Callable[[Draft], None]]


def faults_of(method: str) -> dict[int, list[list[Callable[[Draft], None]]]]:
    """The faults that cause each error. A status that a row lists twice has two lists."""
    is_logout = method == "DELETE"
    return {
        404: [[wrong_path], [no_session]],
        405: [[wrong_method]],
        401: [[no_credential]],
        415: [[wrong_type, coded]],
        413: [[too_large]],
        400: [[malformed, malformed_query] if is_logout else [malformed]],
        422: [[no_designation if is_logout else bad_device], [bad_dates]],
        409: [[immutable]],
        403: [[others_session]],
    }


def row(method: str, path: str) -> list[Fault]:
    """Every error of the operation with its faults, in the order of the contract."""
    errors = [404, 405, *OPERATIONS[path][method].errors]
    errors.remove(503)
    if method == "POST":
        errors.remove(409)  # at the limit: test_login_request.py
    left = faults_of(method)
    return [(status, fault) for status in errors for fault in left[status].pop(0)]


OPERATIONS_WITH_A_BODY = [
    ("POST", "/sesiones"),
    ("PUT", "/sesiones"),
    *(("DELETE", path) for path in LOGOUTS),
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS_WITH_A_BODY)
async def test_errors_come_in_the_order_of_the_row(client: Client, method: str, path: str) -> None:
    others_token = (await client.create(OTHER_USER))["Token_Sesion"]
    for (status, first), (_, second) in itertools.combinations(row(method, path), 2):
        for faults in [first], [first, second], [second, first]:
            sesion = await client.create()
            caller = {"x-auth-token": sesion["Token_Sesion"]}
            draft = Draft(
                method,
                path,
                sesion,
                JSON | (caller if method == "DELETE" else SERVICE),
                others_token=others_token,
            )
            for fault in faults:
                fault(draft)
            check_problem(await draft.send(client), status)
            assert await client.alive(caller["x-auth-token"])


@pytest.mark.parametrize(("method", "path"), OPERATIONS_WITH_A_BODY)
async def test_request_without_a_fault_succeeds(client: Client, method: str, path: str) -> None:
    sesion = await client.create()
    caller = {"x-auth-token": sesion["Token_Sesion"]}
    headers = JSON | (caller if method == "DELETE" else SERVICE)
    assert (await Draft(method, path, sesion, headers).send(client)).status in (200, 201)


# 503


@pytest.fixture(scope="module", params=["in process", "over a socket"])
def without_redis(request: pytest.FixtureRequest) -> Iterable[Client]:
    url = "unix:///nonexistent/redis.sock"
    if request.param == "in process":
        yield Client(open_app(url), None)
    else:
        with Service(SESIONES_REDIS_URL=url, SESIONES_SERVICE_KEY=KEY) as service:
            yield Client(None, service)


@pytest.mark.parametrize(("method", "path"), [*CALLER_ROUTES, *BACKEND_ROUTES])
async def test_route_without_redis_is_a_503(without_redis: Client, method: str, path: str) -> None:
    sesion = dict.fromkeys(FIELDS, 1) | {"Token_Sesion": UNKNOWN, "Dispositivo": "d"}
    if (method, path) in CALLER_ROUTES:
        reply = await without_redis.send(method, path, {"x-auth-token": UNKNOWN})
    elif path == "/sesiones":
        reply = await without_redis.send(method, path, SERVICE | JSON, orjson.dumps(sesion))
    else:
        reply = await without_redis.send(method, path, SERVICE | FORM, f"token={UNKNOWN}".encode())
    if method == "HEAD":
        assert reply.status == 503
    else:
        check_problem(reply, 503)


TOO_MANY_FIELDS = b"x: y\r\n" * 101
UNKNOWN_CODING = b"Transfer-Encoding: gzip\r\n" + CHUNKED


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        (b"GET /nada RTSP/1.1", TOO_MANY_FIELDS, 400),
        (b"GET /nada HTTP/1.1", TOO_MANY_FIELDS + HOST + UNKNOWN_CODING, 431),
        (b"GET /nada HTTP/1.1", HOST + UNKNOWN_CODING, 400),
        (b"CONNECT /nada HTTP/1.1", UNKNOWN_CODING, 400),
        (b"GET /nada HTTP/1.1", UNKNOWN_CODING, 501),
        (b"GET /nada HTTP/1.1", b"Connection: close\r\n", 404),
    ],
)
def test_head_is_checked_in_the_order_of_the_reference(
    service: Service, token: bytes, line: bytes, fields: bytes, status: int
) -> None:
    """The request line, the size, the other rules of HTTP, the codings, and then the route."""
    check_refusal(talk(service, check(token, fields, line=line)), status)


async def test_what_needs_no_redis_comes_before_503(without_redis: Client) -> None:
    send = without_redis.send
    check_problem(await send("GET", "/nada"), 404)
    check_problem(await send("GET", "/sesiones/logout"), 405)
    for method, path in CALLER_ROUTES:
        if method == "HEAD":
            continue
        check_problem(await send(method, path), 401)
        check_problem(await send(method, path, {"x-auth-token": MALFORMED}), 401)
    for method in "POST", "PUT":
        check_problem(await send(method, "/sesiones", JSON, b"{}"), 401)
        check_problem(await send(method, "/sesiones", SERVICE, b"{}"), 415)
        check_problem(await send(method, "/sesiones", SERVICE | JSON, b" " * 17_000), 413)
        check_problem(await send(method, "/sesiones", SERVICE | JSON, b"{"), 400)
        check_problem(await send(method, "/sesiones", SERVICE | JSON, b"{}"), 422)
    # No token can name a session: no need to ask.
    sesion = dict.fromkeys(FIELDS, 1) | {"Token_Sesion": MALFORMED, "Dispositivo": "d"}
    check_problem(await without_redis.put(sesion), 404)
