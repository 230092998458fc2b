"""The API as its tests use it: requests, in process or over a socket, and what every answer has."""

import itertools
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from starlette.applications import Starlette

from sesiones import tokens
from sesiones.http.app import create_app
from sesiones.settings import Settings
from tests.harness import asgi
from tests.harness.contract import FIELDS, LOGIN, OPERATIONS, TITLES, VERIFY_PATH, WITH_FIELDS
from tests.harness.service import Reply, Service
from tests.harness.stores import KEY

SERVICE = {"Authorization": f"Bearer {KEY}"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
LOGOUTS = ["/sesiones/logout", "/sesiones/logoutAll"]
INTROSPECTION, REVOCATION = "/sesiones/introspeccion", "/sesiones/revocacion"


def routes(credential: str) -> list[tuple[str, str]]:
    """The method and path of each operation that wants the credential, with numbers in the path."""
    return [
        (method, path.replace("{ID_Usuario}", "7").replace("{ID_Sesion}", "4096"))
        for path, operations in OPERATIONS.items()
        for method, operation in operations.items()
        if operation.credential == credential
    ]


CALLER_ROUTES = [*routes("token"), ("GET", VERIFY_PATH), ("POST", f"{VERIFY_PATH}/a/b")]
"""The routes that a token authenticates for."""
BACKEND_ROUTES = routes("service key")
"""The routes that need a service key."""
UNKNOWN = "ses_eQz07k5PgmNH6t8HHwcCd5EjWpENcRm0S9HRDtcfiSpz0"
"""The token of no session."""
MALFORMED = UNKNOWN[:-1]
DEVICE = "portátil de pruebas"


def users_of_one_bucket() -> tuple[int, int]:
    first = tokens.user_bucket(7)
    return 7, next(user for user in itertools.count(8) if tokens.user_bucket(user) == first)


USER, BUCKET_MATE = users_of_one_bucket()
"""Two users whose sessions share a bucket."""
OTHER_USER = 8
"""A user of another bucket."""
assert tokens.user_bucket(OTHER_USER) != tokens.user_bucket(USER)


class Client:
    """Requests, in process or over a socket; each answer is checked for what all share."""

    def __init__(self, app: Starlette | None, service: Service | None) -> None:
        self._app = app
        self._service = service

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        query: str = "",
    ) -> Reply:
        headers = headers or {}
        if self._app is not None:
            reply = await asgi.request(
                self._app, method, path, headers.items(), body, query.encode()
            )
        else:
            assert self._service is not None
            target = quote(path) + (f"?{query}" if query else "")
            reply = self._service.request(method, target, dict(headers), body or None)
        assert reply.headers["cache-control"] == "no-store"
        assert DEVICE.encode() not in repr(reply.headers).encode("latin-1")
        assert ("x-id-usuario" in reply.headers) == (
            reply.status == 200 and path.startswith(("/sesiones/self", "/sesiones/verificar"))
        )
        return reply

    async def create(self, ID_Usuario: int = USER, Dispositivo: str = DEVICE) -> dict[str, Any]:
        body = orjson.dumps({"ID_Usuario": ID_Usuario, "Dispositivo": Dispositivo})
        reply = await self.send("POST", "/sesiones", SERVICE | JSON, body)
        assert reply.status == 201
        sesion: dict[str, Any] = reply.json()
        return sesion

    async def put(self, sesion: dict[str, Any], **changes: object) -> Reply:
        return await self.send("PUT", "/sesiones", SERVICE | JSON, orjson.dumps(sesion | changes))

    async def end(self, path: str, caller: str, designated: object) -> Reply:
        body = orjson.dumps({"Token_Sesion": designated})
        return await self.send("DELETE", path, {"x-auth-token": caller} | JSON, body)

    async def alive(self, token: str) -> bool:
        return (await self.send("GET", "/sesiones/self", {"x-auth-token": token})).status == 200


def open_app(url: str) -> Starlette:
    return create_app(Settings(redis_url=url, service_key=(KEY,), redis_timeout=5))


def check_problem(reply: Reply, status: int) -> None:
    """RFC 9457, and the headers of each status."""
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    members = ["type", "title", "status", "detail"]
    assert list(problem)[:4] == members
    assert (problem["type"], problem["title"]) == ("about:blank", TITLES[status])
    assert (problem["status"], type(problem["detail"])) == (status, str)
    # 409 and 422 name fields; nothing else does. The 409 of a POST lists sessions.
    further = ["Sesiones"] if status == 409 and "Sesiones" in problem else ["errores"]
    assert list(problem)[4:] == (further if status in WITH_FIELDS else [])
    for error in problem.get("errores", []):
        assert list(error) == ["campo", "motivo"]
        assert error["campo"] in [*FIELDS, *LOGIN]
        assert error["motivo"]
    assert ("www-authenticate" in reply.headers) == (status == 401)
    assert ("allow" in reply.headers) == (status == 405)
    assert reply.headers.get("retry-after") == ("1" if status == 503 else None)
    assert b"ses_" not in reply.body


def bad_fields(reply: Reply) -> list[str]:
    return [error["campo"] for error in reply.json()["errores"]]


# What the endpoints of management share.


def caller(sesion: dict[str, Any]) -> dict[str, str]:
    return {"x-auth-token": sesion["Token_Sesion"]}


async def list_own(client: Client, sesion: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await client.send("GET", "/sesiones", caller(sesion))
    assert reply.status == 200, reply
    sessions: list[dict[str, Any]] = reply.json()["Sesiones"]
    return sessions


async def list_user(client: Client, user: int) -> list[int]:
    reply = await client.send("GET", f"/sesiones/usuarios/{user}", SERVICE)
    assert reply.status == 200, reply
    return [session["ID_Sesion"] for session in reply.json()["Sesiones"]]


async def post(client: Client, path: str, token: str) -> Reply:
    return await client.send("POST", path, SERVICE | FORM, urlencode({"token": token}).encode())


def check_count(reply: Reply, count: int) -> None:
    assert (reply.status, reply.body) == (200, b'{"Sesiones_Eliminadas":%d}' % count), reply
    assert reply.headers["content-type"] == "application/json"
