"""One route for every path: a dictionary look-up instead of a scan of patterns.

Starlette's patterns also let a path end in an encoded line feed, and stop at one inside it.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import URLPath
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Receive, Scope, Send

from sesiones.problems import Problem

Endpoint = Callable[[Request], Awaitable[Response]]


class Routes(BaseRoute):
    """Exact paths with an endpoint a method, and one path whose endpoint takes every method
    there and below."""

    def __init__(
        self, exact: Mapping[str, Mapping[str, Endpoint]], subtree: tuple[str, Endpoint]
    ) -> None:
        self._exact = exact
        self._root, self._subtree_endpoint = subtree

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if scope["type"] == "http" else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._find(scope)(Request(scope, receive, send))
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> Endpoint:
        path = scope["path"]
        if path == self._root or path.startswith(f"{self._root}/"):
            return self._subtree_endpoint
        methods = self._exact.get(path)
        if methods is None:
            raise Problem(404, "No hay ningún recurso en esta ruta.")
        endpoint = methods.get(scope["method"])
        if endpoint is None:
            allow = ", ".join(methods)
            raise Problem(405, f"Métodos admitidos: {allow}.", headers={"Allow": allow})
        return endpoint
