"""Whether a request may go on: a caller by its token, a backend by a service key. Else a 401."""

from starlette.types import Scope

from sesiones.http.credentials import ServiceKeys, caller_token
from sesiones.http.heads import asks_for_fresh
from sesiones.http.problems import unauthorized
from sesiones.http.traffic import note_session
from sesiones.metrics import CHECKS
from sesiones.sesion import Sesion
from sesiones.store import SessionStore


class Authentication:
    """Each method raises Problem 401."""

    def __init__(self, store: SessionStore, service_keys: ServiceKeys) -> None:
        self._store = store
        self._service_keys = service_keys

    async def caller(self, scope: Scope, *, slide: bool = True) -> Sesion:
        """The caller's live and active session. With ``slide`` this is a use of it."""
        token, presented = caller_token(scope["headers"])
        if token is None:
            self._store.metrics.add(CHECKS, "missing")
            raise unauthorized(presented=presented)
        fresh = asks_for_fresh(scope["headers"])
        sesion = await self._store.find(token, fresh=fresh, slide=slide)
        if sesion is None:
            raise unauthorized(presented=True)
        note_session(scope, sesion)
        return sesion

    def backend(self, scope: Scope) -> None:
        """The request has a service key."""
        admitted, presented = self._service_keys.admit(scope["headers"])
        if not admitted:
            raise unauthorized(presented=presented)
