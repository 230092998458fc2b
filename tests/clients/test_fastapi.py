"""The FastAPI dependency: whose session it gives, what it refuses, what an endpoint may answer."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from starlette.types import Message

from sesiones import Sesion, SessionStore, UserSession, tokens
from sesiones.clients.fastapi import (
    EXCEPTION_HANDLERS,
    SessionModel,
    UserSessionModel,
    session_dependency,
)
from sesiones.clients.starlette import Sessions
from tests.harness import asgi
from tests.harness.service import TOKEN, Service

pytestmark = pytest.mark.anyio

UNKNOWN = "ses_" + 45 * "A"
UNREACHABLE = "redis://127.0.0.1:1"


def application(sessions: Sessions, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    CurrentSession = Annotated[SessionModel, Depends(session_dependency(sessions, cookie="sid"))]

    @app.get("/typed")
    async def typed(current: CurrentSession) -> SessionModel:
        return current

    @app.get("/untyped")
    async def untyped(current: CurrentSession):  # type: ignore[no-untyped-def]
        return current

    @app.get("/nested")
    async def nested(current: CurrentSession) -> dict[str, Any]:
        return {"sessions": [current], "text": f"{current!r} {current}"}

    @app.get("/token")
    async def token(current: CurrentSession) -> bool:
        return TOKEN.fullmatch(current.sesion.Token_Sesion) is not None

    @app.get("/list", response_model=list[UserSessionModel])
    async def listed(current: CurrentSession) -> list[UserSession]:
        assert isinstance(sessions, SessionStore)
        return await sessions.list_sessions(current.sesion.Token_Sesion) or []

    @app.websocket("/ws")
    async def socket(websocket: WebSocket, current: CurrentSession) -> None:
        await websocket.accept()
        await websocket.send_text(str(current.ID_Usuario))
        await websocket.close()

    return app


async def test_endpoint_answers_the_session_without_its_token(store: SessionStore) -> None:
    app = application(store)
    sesion = await store.create(7, "portátil ☃")
    shown = sesion._asdict()
    del shown["Token_Sesion"]
    for headers in (
        [("x-auth-token", sesion.Token_Sesion)],
        [("authorization", f"Bearer {sesion.Token_Sesion}")],
        [("cookie", f"sid={sesion.Token_Sesion}")],
    ):
        for path in "/typed", "/untyped", "/nested":
            reply = await asgi.request(app, "GET", path, headers)
            answer = reply.json()
            found = answer["sessions"][0] if path == "/nested" else answer
            assert found.keys() == shown.keys()
            fixed = shown.keys() - {"Ultima_Actividad", "Fecha_Expiracion"}  # they may have slid
            assert [found[name] for name in fixed] == [shown[name] for name in fixed]
            assert not TOKEN.search(reply.body.decode())
        assert (await asgi.request(app, "GET", "/token", headers)).json() is True


async def test_list_is_that_of_the_api(store: SessionStore, service: Service) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    await store.create(7, "e")
    reply = await asgi.request(application(store), "GET", "/list", [("x-auth-token", token)])
    services = service.request("GET", "/sesiones", {"x-auth-token": token}).json()["Sesiones"]
    for ours, theirs in zip(reply.json(), services, strict=True):
        assert [*ours] == [*theirs]  # the members, in their order
        slid = {"Ultima_Actividad": 0, "Fecha_Expiracion": 0}
        assert ours | slid == theirs | slid


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-auth-token": "x"},
        {"x-auth-token": UNKNOWN},
        {"authorization": "Bearer x"},
        {"authorization": "Basic dTpw"},
    ],
    ids=str,
)
async def test_caller_without_a_session_gets_the_401_of_the_service(
    service: Service, store: SessionStore, headers: dict[str, str]
) -> None:
    services = service.request("GET", "/sesiones/self", headers)
    app = application(store, exception_handlers=EXCEPTION_HANDLERS)
    own = await asgi.request(app, "GET", "/typed", headers.items())
    assert (own.status, own.body) == (401, services.body)
    for name in "www-authenticate", "content-type", "cache-control":
        assert own.headers[name] == services.headers[name]
    # Without the handlers the body is FastAPI's.
    own = await asgi.request(application(store), "GET", "/typed", headers.items())
    assert own.status == 401
    assert own.headers["www-authenticate"] == services.headers["www-authenticate"]


async def test_two_credentials_are_none(store: SessionStore) -> None:
    token = (await store.create(7, "d")).Token_Sesion
    for headers in (
        [("x-auth-token", token), ("cookie", f"sid={token}")],
        [("authorization", f"Bearer {token}"), ("cookie", f"sid={token}")],
        [("x-auth-token", token), ("authorization", f"Bearer {token}")],
        [("x-auth-token", token), ("x-auth-token", token)],
        [("cookie", f"sid={token}; sid={token}")],
    ):
        assert (await asgi.request(application(store), "GET", "/typed", headers)).status == 401


async def test_request_is_answered_503_where_redis_is_away() -> None:
    async with SessionStore.from_url(UNREACHABLE) as gone:
        app = application(gone, exception_handlers=EXCEPTION_HANDLERS)
        headers = [("x-auth-token", tokens.make(7))]
        reply = await asgi.request(app, "GET", "/typed", headers)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert await open_websocket(app, headers[0][1]) == [503]


async def test_handshake_of_a_websocket_needs_a_session(store: SessionStore) -> None:
    app = application(store, exception_handlers=EXCEPTION_HANDLERS)
    token = (await store.create(7, "d")).Token_Sesion
    assert await open_websocket(app, token) == ["7"]
    assert await open_websocket(app, tokens.make(7)) == [401]
    assert await open_websocket(application(store), tokens.make(7)) == [401]


async def open_websocket(app: FastAPI, token: str) -> list[Any]:
    """What the server sends: the status that refuses the handshake, or the texts."""
    sent: list[Any] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.extend(message[name] for name in ("status", "text") if name in message)

    scope = {
        "type": "websocket",
        "path": "/ws",
        "raw_path": b"/ws",
        "root_path": "",
        "query_string": b"",
        "subprotocols": [],
        "headers": [(b"cookie", f"sid={token}".encode())],
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return sent


def test_document_of_the_application_says_how_to_send_the_token() -> None:
    store = SessionStore.from_url(UNREACHABLE)
    document = application(store).openapi()
    assert document["components"]["securitySchemes"] == {
        "token": {"type": "apiKey", "in": "header", "name": "x-auth-token"},
        "portador": {"type": "http", "scheme": "bearer"},
        "cookie": {"type": "apiKey", "in": "cookie", "name": "sid"},
    }
    operation = document["paths"]["/typed"]["get"]
    assert operation["security"] == [{"token": []}, {"portador": []}, {"cookie": []}]
    assert "parameters" not in operation
    assert "Token_Sesion" not in str(document)


def test_document_names_no_cookie_where_none_counts() -> None:
    app = FastAPI()
    depends = Depends(session_dependency(SessionStore.from_url(UNREACHABLE)))
    app.add_api_route("/", lambda: None, dependencies=[depends])
    assert [*app.openapi()["components"]["securitySchemes"]] == ["token", "portador"]


def test_response_of_the_type_sesion_is_refused_at_start() -> None:
    async def me() -> Sesion:
        raise AssertionError

    for returned in Sesion, list[Sesion], Sesion | None:
        with pytest.raises(TypeError, match="SessionModel"):
            FastAPI().add_api_route("/", me, response_model=returned)
