"""An API node. Run two; a session made on one is known to the other:

uvicorn --app-dir docs/examples node:app --port 9001
uvicorn --app-dir docs/examples node:app --port 9002

curl -s localhost:9001/login -d usuario=7 -d contrasena=secreto
curl -s localhost:9002/yo -H "x-auth-token: $TOKEN"
curl -s -X POST localhost:9002/logout -H "x-auth-token: $TOKEN"
"""

import contextlib
import os
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sesiones import SessionStore
from sesiones.clients.starlette import EXCEPTION_HANDLERS, SessionBackend, on_error

PASSWORDS = {"7": "secreto"}  # yours: a password hash in a database

store = SessionStore.from_url(os.environ.get("SESIONES_REDIS_URL", "redis://127.0.0.1:6379/0"))


async def login(request: Request) -> Response:
    form = parse_qs((await request.body()).decode("latin-1"))
    usuario, contrasena = (form.get(field, [""])[0] for field in ("usuario", "contrasena"))
    if PASSWORDS.get(usuario) != contrasena:
        return Response(status_code=401)
    device = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))[:512]
    sesion = await store.create(int(usuario), device or "desconocido")
    return JSONResponse({"token": sesion.Token_Sesion})


@requires("authenticated", status_code=401)
async def me(request: Request) -> Response:
    sesion = request.user.sesion
    return JSONResponse({"usuario": sesion.ID_Usuario, "dispositivo": sesion.Dispositivo})


@requires("authenticated", status_code=401)
async def logout(request: Request) -> Response:
    token = request.user.sesion.Token_Sesion
    await store.end(token, token)
    return Response(status_code=204)


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with store:
        yield


app = Starlette(
    routes=[
        Route("/login", login, methods=["POST"]),
        Route("/yo", me),
        Route("/logout", logout, methods=["POST"]),
    ],
    middleware=[
        Middleware(AuthenticationMiddleware, backend=SessionBackend(store), on_error=on_error)
    ],
    exception_handlers=EXCEPTION_HANDLERS,
    lifespan=lifespan,
)
