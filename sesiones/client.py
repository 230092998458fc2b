"""For API nodes that may not reach Redis: the sessions of a service, over HTTP. Needs httpx:
``pip install 'sesiones[client]'``."""

from types import TracebackType

import httpx

from sesiones.sesion import Sesion
from sesiones.store import StoreUnavailable


class SessionClient:
    """A sesiones service at an URL, such as http://127.0.0.1:8000."""

    def __init__(self, url: str, *, timeout_seconds: float = 1.0) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_seconds, trust_env=False)

    async def find(self, token: str) -> Sesion | None:
        """The live and active session of a well-formed token, slid when due; else None. Raises
        StoreUnavailable when the service does not answer within ``timeout_seconds`` or cannot."""
        try:
            response = await self._http.get("/sesiones/self", headers={"x-auth-token": token})
            if response.status_code == 401:
                return None
            if response.status_code != 200:
                raise StoreUnavailable(f"the service answers {response.status_code}")
            return Sesion(**response.json())
        except (httpx.HTTPError, ValueError, TypeError) as error:
            raise StoreUnavailable(f"no reply of a service: {type(error).__name__}") from error

    async def aclose(self) -> None:
        """Close the connections to the service."""
        await self._http.aclose()

    async def __aenter__(self) -> "SessionClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
