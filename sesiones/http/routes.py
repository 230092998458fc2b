"""Routing by look-up: the checks before any middleware, everything else as one Starlette route.

Starlette's own routes are patterns, tried one after the other. They also match a path that ends in
an encoded line feed, and fail to match one that has a line feed inside.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import URLPath
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import ASGIApp, Receive, Scope, Send

from sesiones.http.problems import Problem, unavailable
from sesiones.http.requests import DECIMAL
from sesiones.http.traffic import Traffic
from sesiones.sesion import BOUNDS

_FIELD = re.compile(r"{(\w+)}")

Endpoint = Callable[[Request], Awaitable[Response]]


def raw_path(scope: Scope) -> str:
    """The path as it was sent. If it were decoded, /%73esiones would reach /sesiones through a
    gateway that blocks /sesiones."""
    raw: bytes | None = scope.get("raw_path")
    return scope["path"] if raw is None else raw.decode("latin-1")


class Service(Starlette):
    """Starlette with the checks before everything else: ``whoami`` at one path for GET and HEAD,
    ``verify`` at another path and below it for every method."""

    def __init__(
        self,
        traffic: Traffic,
        whoami: tuple[str, ASGIApp],
        verify: tuple[str, ASGIApp],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._traffic = traffic
        self._whoami_path, self._whoami = whoami
        self._verify_path, self._verify = verify
        self._below_verify = f"{self._verify_path}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        send = self._traffic.observed(scope, send)
        path = raw_path(scope)
        try:
            if path == self._whoami_path and scope["method"] in ("GET", "HEAD"):
                await self._whoami(scope, receive, send)
            elif path == self._verify_path or path.startswith(self._below_verify):
                await self._verify(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # the server has waited for Redis as long as a stop may take
            await unavailable().response()(scope, receive, send)


class Routes(BaseRoute):
    """Every other path, with an endpoint for each of its methods. A method whose endpoint is None
    has been answered before by Service; it is in the table because the ``Allow`` of a 405 lists
    it.

    A segment such as ``{ID_Sesion}`` stands for a value of that field in plain decimal, which the
    endpoint finds in the request's path_params.
    """

    def __init__(self, endpoints: Mapping[str, Mapping[str, Endpoint | None]]) -> None:
        self.endpoints = endpoints
        self._fixed = {path: methods for path, methods in endpoints.items() if "{" not in path}
        self._numbered = [
            (re.compile(_FIELD.sub(rf"(?P<\1>{DECIMAL.pattern})", path)), methods)
            for path, methods in endpoints.items()
            if path not in self._fixed
        ]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if scope["type"] == "http" else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint, scope["path_params"] = self._find(raw_path(scope), scope["method"])
        try:
            response = await endpoint(Request(scope, receive, send))
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _find(self, path: str, method: str) -> tuple[Endpoint, dict[str, int]]:
        methods, numbers = self._match(path)
        if methods is None:
            raise Problem(404, "No hay ningún recurso en esta ruta; véase /docs.")
        endpoint = methods.get(method)
        if endpoint is None:
            allow = ", ".join(methods)
            raise Problem(405, f"Métodos admitidos: {allow}.", headers={"Allow": allow})
        return endpoint, numbers

    def _match(self, path: str) -> tuple[Mapping[str, Endpoint | None] | None, dict[str, int]]:
        """The methods of a path, and the numbers in it."""
        if path in self._fixed:
            return self._fixed[path], {}
        for pattern, methods in self._numbered:
            match = pattern.fullmatch(path)
            if match:
                numbers = {field: int(digits) for field, digits in match.groupdict().items()}
                if all(BOUNDS[field][0] <= n <= BOUNDS[field][1] for field, n in numbers.items()):
                    return methods, numbers
        return None, {}
