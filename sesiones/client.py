"""For API nodes that may not reach Redis: the sessions of a service, over HTTP. Needs httpx:
``pip install 'sesiones[client]'``."""

import asyncio

import httpx

from sesiones import tokens
from sesiones.sesion import Sesion
from sesiones.store import StoreUnavailable


class SessionClient:
    """A sesiones service at an URL, such as http://127.0.0.1:8000."""

    def __init__(self, url: str, *, timeout_seconds: float = 1.0) -> None:
        self._timeout_seconds = timeout_seconds
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_seconds, trust_env=False)

    async def find(self, token: str) -> Sesion | None:
        """The live and active session of the token, slid when due; else None. Anything that is not
        a well-formed token is None too, and the service is not asked. Raises StoreUnavailable
        when the service does not answer within ``timeout_seconds`` or cannot."""
        valid = tokens.parse(token)
        if valid is None:
            return None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._http.get("/sesiones/self", headers={"x-auth-token": valid})
            # Not a proxy's: what others answer ends nobody's session, and begins none.
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
        """Close the connections to the service."""
        await self._http.aclose()

    async def __aenter__(self) -> "SessionClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
