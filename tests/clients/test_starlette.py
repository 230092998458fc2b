"""SessionBackend in Starlette and FastAPI, on a store and on a service over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from fastapi import FastAPI
from redis import Redis
from starlette.applications import Starlette
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from sesiones import SessionStore, tokens
from sesiones.clients.http import SessionClient
from sesiones.clients.starlette import SessionBackend, Sessions, on_error
from tests.harness import asgi
from tests.harness.service import Service

pytestmark = pytest.mark.anyio

UNREACHABLE = "redis://127.0.0.1:1"


async def whoami(request: Request) -> JSONResponse:
    user = request.user
    seen = [user.is_authenticated, user.identity, user.display_name, request.auth.scopes]
    return JSONResponse(seen)


async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.user.identity)
    await websocket.close()


def authenticating(app: Starlette, sessions: Sessions) -> Starlette:
    app.add_middleware(
        AuthenticationMiddleware, backend=SessionBackend(sessions), on_error=on_error
    )
    return app


def application(sessions: Sessions) -> Starlette:
    return authenticating(
        Starlette(routes=[Route("/", whoami), WebSocketRoute("/ws", listen)]), sessions
    )


def fast_application(sessions: Sessions) -> Starlette:
    app = FastAPI()
    app.add_api_route("/", whoami)
    return authenticating(app, sessions)


@pytest.fixture(params=["store", "client"])
async def sessions(
    request: pytest.FixtureRequest, service: Service, store: SessionStore
) -> AsyncIterator[Sessions]:
    """A store, and a client of a service on the same Redis."""
    if request.param == "store":
        yield store
    else:
        async with SessionClient(f"http://127.0.0.1:{service.port}", timeout_seconds=5) as client:
            yield client


NO_USER = [False, "", "", []]


@pytest.mark.parametrize("make", [application, fast_application], ids=["Starlette", "FastAPI"])
async def test_user_of_a_request_is_that_of_its_session(
    sessions: Sessions, store: SessionStore, make: Callable[[Sessions], Starlette]
) -> None:
    app = make(sessions)
    sesion = await store.create(7, "portátil")
    token = sesion.Token_Sesion
    for headers in [("x-auth-token", token)], [("Authorization", f"bearer {token}")]:
        reply = await asgi.request(app, "GET", "/", headers)
        assert reply.json() == [True, "7", "7", ["authenticated"]]
    for headers in (
        [],
        [("x-auth-token", token[:-1])],
        [("x-auth-token", tokens.make(7))],
        [("x-auth-token", token), ("x-auth-token", token)],
        [("Authorization", f"Basic {token}")],
    ):
        assert (await asgi.request(app, "GET", "/", headers)).json() == NO_USER
    await store.update(sesion._replace(Estado_Sesion=0))
    assert (await asgi.request(app, "GET", "/", [("x-auth-token", token)])).json() == NO_USER
    await store.update(sesion)
    assert (await store.end(token, token)) == 1
    assert (await asgi.request(app, "GET", "/", [("x-auth-token", token)])).json() == NO_USER


async def test_found_session_has_every_field(sessions: Sessions, store: SessionStore) -> None:
    made = await store.create(7, "portátil ☃")
    found = await sessions.find(made.Token_Sesion)
    assert found is not None
    slid = found.Ultima_Actividad - made.Ultima_Actividad  # the clock may have gone on a second
    assert 0 <= slid <= 5
    assert found == made._replace(
        Ultima_Actividad=made.Ultima_Actividad + slid,
        Fecha_Expiracion=made.Fecha_Expiracion + slid,
    )
    assert await sessions.find(tokens.make(7)) is None


async def test_websocket_is_authenticated(sessions: Sessions, store: SessionStore) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    assert await open_websocket(application(sessions), token) == [
        "websocket.accept",
        "7",
        "websocket.close",
    ]
    async with SessionStore.from_url(UNREACHABLE) as gone:
        assert await open_websocket(application(gone), token) == ["websocket.close"]


async def open_websocket(app: Starlette, token: str) -> list[str]:
    sent: list[str] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message.get("text") or message["type"])

    scope = {
        "type": "websocket",
        "path": "/ws",
        "raw_path": b"/ws",
        "root_path": "",
        "query_string": b"",
        "subprotocols": [],
        "headers": [(b"x-auth-token", token.encode())],
    }
    await app(scope, receive, send)
    return sent


async def test_simultaneous_requests_are_one_call(store: SessionStore, redis: "Redis") -> None:
    app = application(store)
    asked = [("x-auth-token", (await store.create(user, "d")).Token_Sesion) for user in range(50)]
    redis.config_resetstat()
    replies = await asyncio.gather(*(asgi.request(app, "GET", "/", [one]) for one in asked))
    assert [reply.json()[1] for reply in replies] == [str(user) for user in range(50)]
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 1


async def test_request_is_answered_503_where_redis_is_away() -> None:
    async with SessionStore.from_url(UNREACHABLE) as store:
        reply = await asgi.request(
            application(store), "GET", "/", [("x-auth-token", tokens.make(7))]
        )
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        assert (await asgi.request(application(store), "GET", "/")).json() == NO_USER
