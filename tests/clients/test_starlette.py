"""SessionBackend in Starlette and FastAPI, on a store and on a service over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from fastapi import FastAPI
from redis import Redis
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.exceptions import HTTPException
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from sesiones import SessionStore, tokens
from sesiones.clients.http import SessionClient
from sesiones.clients.starlette import (
    EXCEPTION_HANDLERS,
    SessionBackend,
    Sessions,
    on_error,
)
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


@requires("authenticated", status_code=401)
async def required(request: Request) -> JSONResponse:
    return await whoami(request)


async def required_socket(websocket: WebSocket) -> None:
    if not websocket.user.is_authenticated:
        raise HTTPException(401)
    await listen(websocket)


def authenticating(app: Starlette, sessions: Sessions) -> Starlette:
    app.add_middleware(
        AuthenticationMiddleware,
        backend=SessionBackend(sessions, cookie="sid"),
        on_error=on_error,
    )
    return app


def application(sessions: Sessions) -> Starlette:
    async def store_use(_: Request) -> JSONResponse:
        return JSONResponse(await sessions.find(tokens.make(7)))

    routes = [
        Route("/", whoami),
        Route("/required", required),
        Route("/store", store_use),
        WebSocketRoute("/ws", listen),
        WebSocketRoute("/required-ws", required_socket),
    ]
    return authenticating(Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS), sessions)


def fast_application(sessions: Sessions) -> Starlette:
    app = FastAPI(exception_handlers=EXCEPTION_HANDLERS)
    app.add_api_route("/", whoami)
    app.add_api_route("/required", required)
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
    for headers in (
        [("x-auth-token", token)],
        [("Authorization", f"bearer {token}")],
        [("Cookie", f"a=b; sid={token}")],
    ):
        reply = await asgi.request(app, "GET", "/", headers)
        assert reply.json() == [True, "7", "7", ["authenticated"]]
    for headers in (
        [],
        [("x-auth-token", token[:-1])],
        [("x-auth-token", tokens.make(7))],
        [("x-auth-token", token), ("x-auth-token", token)],
        [("Authorization", f"Basic {token}")],
        [("x-auth-token", token), ("Cookie", f"sid={token}")],
        [("Cookie", f"sid={token}; sid={token}")],
        [("Cookie", f"other={token}")],
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


@pytest.mark.parametrize("make", [application, fast_application], ids=["Starlette", "FastAPI"])
async def test_requires_answers_the_401_of_the_service(
    service: Service, store: SessionStore, make: Callable[[Sessions], Starlette]
) -> None:
    app = make(store)
    token = (await store.create(7, "d")).Token_Sesion
    reply = await asgi.request(app, "GET", "/required", [("x-auth-token", token)])
    assert (reply.status, reply.json()[1]) == (200, "7")
    for headers in {}, {"x-auth-token": "x"}, {"authorization": "Bearer x"}, NO_CREDENTIAL:
        own = await asgi.request(app, "GET", "/required", headers.items())
        services = service.request("GET", "/sesiones/self", headers)
        assert (own.status, own.body) == (services.status, services.body)
        for name in "www-authenticate", "content-type", "cache-control":
            assert own.headers[name] == services.headers[name]
    own = await asgi.request(app, "GET", "/required", [("cookie", "sid=x")])
    assert 'error="invalid_token"' in own.headers["www-authenticate"]


NO_CREDENTIAL = {"authorization": "Basic dTpw"}


async def test_header_of_an_own_401_is_kept() -> None:
    async def refuse(_: Request) -> JSONResponse:
        raise HTTPException(401, headers={"WWW-Authenticate": "Own", "X-Own": "1"})

    app = Starlette(routes=[Route("/", refuse)], exception_handlers=EXCEPTION_HANDLERS)
    reply = await asgi.request(app, "GET", "/")
    assert (reply.status, reply.headers["x-own"]) == (401, "1")
    assert reply.headers["www-authenticate"] == "Own"


async def test_websocket_is_authenticated(sessions: Sessions, store: SessionStore) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    for path in "/ws", "/required-ws":
        for header in (b"x-auth-token", token), (b"cookie", f"sid={token}"):
            assert await open_websocket(application(sessions), path, header) == [
                "websocket.accept",
                "7",
                "websocket.close",
            ]
    refused = await open_websocket(application(sessions), "/required-ws", (b"cookie", "sid=x"))
    assert refused == ["websocket.http.response.start 401", "websocket.http.response.body"]
    async with SessionStore.from_url(UNREACHABLE) as gone:
        for path in "/ws", "/required-ws":
            header = b"x-auth-token", token
            assert await open_websocket(application(gone), path, header) == ["websocket.close"]


async def open_websocket(app: Starlette, path: str, header: tuple[bytes, str]) -> list[str]:
    sent: list[str] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        status = f" {message['status']}" if "status" in message else ""
        sent.append(message.get("text") or message["type"] + status)

    scope = {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "subprotocols": [],
        "headers": [(header[0], header[1].encode())],
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("cookie", ["", "a b", "a;b", "a=b", "sesión", "a\n"])
def test_name_that_no_cookie_can_have_is_refused(cookie: str) -> None:
    with pytest.raises(ValueError, match="name of a cookie"):
        SessionBackend(SessionStore.from_url(UNREACHABLE), cookie=cookie)


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
        used = await asgi.request(application(store), "GET", "/store")
        assert (used.status, used.body, used.headers) == (503, reply.body, reply.headers)
