"""A website behind a gateway: login, logout, the user's devices, a WebSocket. ``make example`` runs
it behind Caddy, on docs/gateways/Caddyfile-web.

The gateway lets no request without a session pass but those of ``/auth/`` and ``/public/``. So the
pages here believe the identity headers, and only ``/auth/`` gets the token, as x-auth-token. The
application speaks to sesiones as a backend, by a service key, at SESIONES_URL.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from sesiones import Login, Refusal, StoreUnavailable
from sesiones.clients.http import SessionClient

HERE = Path(__file__).parent
PASSWORDS = {"7": "secreto", "8": "oculto"}  # yours: a password hash in a database
PAGE = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'self'"}
COOKIE = "__Host-sesion"
RECHECK_SECONDS = float(os.environ.get("EXAMPLE_RECHECK_SECONDS", "5"))
"""A WebSocket lives at most this much longer than its session, and the time of two answers."""

client = SessionClient(
    os.environ.get("SESIONES_URL", "http://127.0.0.1:8000"),
    service_key=os.environ.get("SESIONES_SERVICE_KEY"),
)


def identity(connection: HTTPConnection) -> tuple[int, int]:
    """ID_Usuario and ID_Sesion, as the gateway says."""
    headers = connection.headers
    return int(headers["x-id-usuario"]), int(headers["x-id-sesion"])


async def is_live(user: int, session: int) -> bool:
    """Whether the session is live and active. It does not count as a use of the session."""
    return any(
        each.ID_Sesion == session and each.Estado_Sesion for each in await client.sessions(user)
    )


# Not checked by the gateway: these get the token.


async def login_page(_: Request) -> Response:
    return FileResponse(HERE / "login.html", headers=PAGE)


async def login(request: Request) -> Response:
    form = parse_qs((await request.body()).decode("latin-1"))
    usuario, contrasena = (form.get(field, [""])[0] for field in ("usuario", "contrasena"))
    if PASSWORDS.get(usuario) != contrasena:
        return FileResponse(HERE / "login.html", 401, headers=PAGE)
    device = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))[:512]
    # The session that this browser had, whoever's it was, ends: a login never adds to it.
    before = Login(Token_Anterior=request.headers.get("x-auth-token"))
    sesion = await client.create(int(usuario), device or "desconocido", before)
    response = RedirectResponse("/", 303)
    # __Host-: for this host alone, on every path, over TLS (or on localhost).
    response.set_cookie(COOKIE, sesion.Token_Sesion, secure=True, httponly=True, samesite="lax")
    return response


async def logout(request: Request) -> Response:
    token = request.headers.get("x-auth-token", "")
    await client.end(token, token)
    response = RedirectResponse("/auth/login", 303)
    response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="lax")
    return response


async def end_others(request: Request) -> Response:
    ended = await client.end_others(request.headers.get("x-auth-token", ""))
    if isinstance(ended, Refusal):
        return Response(status_code=401)
    return JSONResponse({"ended": ended})


# Checked by the gateway: these get the identity.


async def home(_: Request) -> Response:
    return FileResponse(HERE / "home.html", headers=PAGE)


async def devices(request: Request) -> Response:
    user, session = identity(request)
    listed = await client.sessions(user)
    return JSONResponse(
        [each._replace(Actual=each.ID_Sesion == session).to_dict() for each in listed]
    )


async def end_device(request: Request) -> Response:
    user, _ = identity(request)
    return JSONResponse({"ended": await client.end_user(user, request.path_params["session"])})


async def live(websocket: WebSocket) -> None:
    """The gateway checks a WebSocket once, when it opens. So this asks again and again, and closes
    it when its session has ended, or cannot be asked for."""
    user, session = identity(websocket)
    await websocket.accept()
    await websocket.send_json({"user": user})
    try:
        while await is_live(user, session):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_SECONDS):
                    while True:
                        await websocket.receive_text()
        await websocket.close(4401, "the session has ended")
    except StoreUnavailable:
        await websocket.close(1013, "the sessions cannot be asked")
    except WebSocketDisconnect:
        pass


async def unavailable(_: Request, __: Exception) -> Response:
    return Response(status_code=503, headers={"Retry-After": "1"})


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with client:
        yield


app = Starlette(
    routes=[
        Route("/auth/login", login_page),
        Route("/auth/login", login, methods=["POST"]),
        Route("/auth/logout", logout, methods=["POST"]),
        Route("/auth/end-others", end_others, methods=["POST"]),
        Mount("/public", StaticFiles(directory=HERE / "public")),
        Route("/", home),
        Route("/devices", devices),
        Route("/devices/{session:int}", end_device, methods=["DELETE"]),
        WebSocketRoute("/live", live),
    ],
    exception_handlers={StoreUnavailable: unavailable},
    lifespan=lifespan,
)
