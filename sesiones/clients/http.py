"""Sessions over HTTP, for API nodes that may not reach Redis. Needs httpx: ``pip install
'sesiones[client]'``."""

import asyncio

import httpx

from sesiones import tokens
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.tasks import Deadline, PerLoop


class SessionClient:
    """A sesiones service at a URL, such as http://127.0.0.1:8000.

    One client serves any number of event loops and threads, like a SessionStore: each loop has
    connections of its own, which are closed when the loop ends or by aclose() in it.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 1.0) -> None:
        self._url = httpx.URL(url)
        self._timeout_seconds = timeout_seconds
        self._tls = httpx.create_ssl_context(trust_env=False)  # slow: once for all loops
        self._loops = PerLoop(self._open_loop, httpx.AsyncClient.aclose)

    def _open_loop(self) -> httpx.AsyncClient:
        # find() has the deadline. After a pause of the process httpx's own timeouts would discard
        # replies that have arrived.
        no_timeout = httpx.Timeout(None)
        return httpx.AsyncClient(
            base_url=self._url, verify=self._tls, timeout=no_timeout, trust_env=False
        )

    async def find(self, token: str) -> Sesion | None:
        """The live and active session of the token, slid when due; else None. Anything that is not
        a well-formed token is None too, and the service is not asked. Raises StoreUnavailable
        when the service does not answer within ``timeout_seconds`` or cannot."""
        valid = tokens.parse(token)
        if valid is None:
            return None
        try:
            async with Deadline(asyncio.get_running_loop().time() + self._timeout_seconds):
                http = self._loops.get()
                response = await http.get("/sesiones/self", headers={"x-auth-token": valid})
            # A proxy on the way may answer with a 401 of its own.
            challenge = response.headers.get("www-authenticate", "")
            if response.status_code == 401 and 'realm="sesiones"' in challenge:
                return None
            if response.status_code != 200:
                raise StoreUnavailable(f"the service answers {response.status_code}")
            sesion = Sesion(**response.json())
            if (sesion.Token_Sesion, sesion.Estado_Sesion) != (valid, 1):
                raise ValueError("another session")
            return sesion
        except (httpx.HTTPError, RuntimeError, TimeoutError, TypeError, ValueError) as error:
            raise StoreUnavailable(f"no reply of a service: {type(error).__name__}") from error

    async def aclose(self) -> None:
        """Close the running event loop's connections to the service, for good."""
        await self._loops.get().aclose()

    async def __aenter__(self) -> "SessionClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
