"""Sessions over HTTP, for API nodes and backends that may not reach Redis. Needs httpx:
``pip install 'sesiones[client]'``."""

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict

import httpx
import orjson

from sesiones import tokens
from sesiones.policy import SessionPolicy
from sesiones.sesion import (
    BAD_DATES,
    INT_MAX,
    NO_LOGIN,
    BadDates,
    Immutable,
    LimitReached,
    Login,
    Refusal,
    Sesion,
    StoreUnavailable,
    UserSession,
    valid_device,
    valid_field,
    valid_integer,
    valid_text,
)
from sesiones.settings import MAX_PER_USER_MAX, SECONDS_MAX, SERVICE_KEY
from sesiones.tasks import MALFORMED_REPLY_ERRORS, Deadline, PerLoop

WIDEST_POLICY = SessionPolicy(max_seconds=SECONDS_MAX, max_per_user=MAX_PER_USER_MAX)
"""What any service may allow a login. Only the service knows its own policy."""

LISTED = [field for field in Sesion._fields if field not in ("ID_Usuario", "Token_Sesion")]
"""The fields of a session in a list."""
REFUSALS = {401: Refusal.UNAUTHENTICATED, 403: Refusal.FORBIDDEN}
CONNECTIONS_MAX = 100
"""Of one event loop. More calls than that wait, until their deadline."""
IDLE_SECONDS_MAX = 5.0
"""After so long without a call a connection is closed. httpx would not use it any more."""


class SessionClient:
    """A sesiones service at a URL, such as http://127.0.0.1:8000.

    The methods have the names, arguments, results and exceptions of SessionStore's. TypeError and
    ValueError come before anything is sent, but for a login that the service's own policy does not
    allow. StoreUnavailable is raised when the service does not answer within ``timeout_seconds``,
    cannot, or refuses the service key: what was asked for may or may not have happened. No method
    asks twice.

    ``service_key``: one of SESIONES_SERVICE_KEY. The methods that take a user, a Sesion or no
    caller need it: create, update, sessions, end_user and revoke.

    One client serves any number of event loops and threads, like a SessionStore: each loop has
    connections of its own, which are closed when the loop ends or by aclose() in it.
    """

    def __init__(
        self, url: str, *, service_key: str | None = None, timeout_seconds: float = 1.0
    ) -> None:
        self._url = httpx.URL(url)
        self._backend = {}
        if service_key is not None:
            if not re.fullmatch(SERVICE_KEY, service_key):
                raise ValueError("service_key must be one key of SESIONES_SERVICE_KEY")
            self._backend["authorization"] = f"Bearer {service_key}"
        self._timeout_seconds = timeout_seconds
        self._tls = httpx.create_ssl_context(trust_env=False)  # slow: once for all loops
        self._loops = PerLoop(lambda: _Connections(self._open), _Connections.aclose)

    def _open(self) -> httpx.AsyncClient:
        # _ask() has the deadline. After a pause of the process httpx's own timeouts would discard
        # replies that have arrived.
        no_timeout = httpx.Timeout(None)
        return httpx.AsyncClient(
            base_url=self._url, verify=self._tls, timeout=no_timeout, trust_env=False
        )

    # For the owner of a session, with its token.

    async def find(self, token: str, *, fresh: bool = False, slide: bool = True) -> Sesion | None:
        """The live and active session of the token, slid when due; else None. ``fresh``: the
        service asks Redis even if its near-cache has the answer. Without ``slide``, this is no use
        of the session."""
        valid = tokens.parse(token)
        if valid is None:
            return None
        headers = _caller(valid)
        headers |= {"cache-control": "no-cache"} if fresh else {}
        headers |= {} if slide else {"x-sin-deslizar": "1"}
        reply = await self._ask("GET", "/sesiones/self", headers, refusals=[401])
        return None if reply.is_refusal else reply.session(Token_Sesion=valid, Estado_Sesion=1)

    async def end(self, caller: str, designated: str) -> int | Refusal:
        """End the designated session, of the same user as the caller's: how many ended, 0 or 1. A
        use of the caller's session, unlike the store's end()."""
        valid_caller, valid_designated = tokens.parse(caller), tokens.parse(designated)
        if valid_caller is not None and valid_designated is None:
            return 0
        return await self._end("/sesiones/logout", valid_caller, {"Token_Sesion": valid_designated})

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        """End every live session of the caller's user: how many ended."""
        valid = tokens.parse(caller)
        return await self._end(
            "/sesiones/logoutAll", valid, {"Token_Sesion": tokens.parse(designated) or valid}
        )

    async def end_others(self, caller: str) -> int | Refusal:
        """End every live session of the caller's user but the caller's: how many ended. A use of
        the caller's session."""
        return await self._end("/sesiones/logoutOthers", tokens.parse(caller))

    async def end_one(self, caller: str, ID_Sesion: int) -> int | Refusal:
        """End the session of that number, if it is a live one of the caller's user: how many ended,
        0 or 1. A use of the caller's session."""
        which = valid_integer("ID_Sesion", ID_Sesion)
        return await self._end(f"/sesiones/{which}", tokens.parse(caller))

    async def list_sessions(self, caller: str) -> list[UserSession] | None:
        """The live sessions of the caller's user, active or not, the caller's with Actual: the most
        recently used first, then the newest first. None when the caller's own is not live and
        active. A use of the caller's session. ID_Usuario and fingerprint are None in each."""
        valid = tokens.parse(caller)
        if valid is None:
            return None
        reply = await self._ask("GET", "/sesiones", _caller(valid), refusals=[401])
        return None if reply.is_refusal else reply.sessions(None)

    # For the application's backend, with a service key.

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        """A new session, and what else the login asks for, all at once.

        A user at the limit loses the session that expires first. Where the service refuses one more
        instead, this raises LimitReached, and nothing has ended. Raises ValueError for what the
        service's policy does not allow. After StoreUnavailable there may be a session whose token
        is lost: it expires unused.
        """
        user, device = valid_integer("ID_Usuario", ID_Usuario), valid_device(Dispositivo)
        if not isinstance(login, Login):
            raise TypeError("the login must be a Login")
        resolved = asdict(login.resolved(WIDEST_POLICY))
        if not tokens.is_well_formed(login.Token_Anterior):
            del resolved["Token_Anterior"]
        given = {name: value for name, value in resolved.items() if getattr(login, name)}
        members = {"ID_Usuario": user, "Dispositivo": device} | given
        reply = await self._ask("POST", "/sesiones", self._backend, members, refusals=[409, 422])
        if reply.status == 409:
            raise LimitReached(reply.sessions(user))
        reply.raise_for_fields()
        return reply.session(ID_Usuario=user, Dispositivo=device)

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        """Update the live session of the given object's token, active or not, and return it as
        it now stands; None when there is none."""
        if not isinstance(given, Sesion):
            raise TypeError("the session must be a Sesion")
        valid = given.validated()
        if not tokens.is_well_formed(valid.Token_Sesion):
            return None
        reply = await self._ask(
            "PUT", "/sesiones", self._backend, valid._asdict(), refusals=[404, 409, 422]
        )
        if reply.status == 404:
            return None
        if reply.status == 409:
            return Immutable(tuple(reply.errors()))
        if reply.status == 422:
            motive = reply.errors().get("Fecha_Expiracion")
            for reason, text in BAD_DATES.items():
                if motive == text:
                    return BadDates(reason)
        reply.raise_for_fields()
        return reply.session(Token_Sesion=valid.Token_Sesion, ID_Sesion=valid.ID_Sesion)

    async def sessions(self, ID_Usuario: int) -> list[UserSession]:
        """The user's live sessions, active or not: the most recently used first, then the newest
        first. ``fingerprint`` is None in each."""
        user = valid_integer("ID_Usuario", ID_Usuario)
        reply = await self._ask("GET", f"/sesiones/usuarios/{user}", self._backend)
        return reply.sessions(user)

    async def end_user(self, ID_Usuario: int, ID_Sesion: int | None = None) -> int:
        """End one session of the user, or all, without a token: how many ended."""
        path = f"/sesiones/usuarios/{valid_integer('ID_Usuario', ID_Usuario)}"
        if ID_Sesion is not None:
            path += f"/{valid_integer('ID_Sesion', ID_Sesion)}"
        return (await self._ask("DELETE", path, self._backend)).ended()

    async def revoke(self, token: str) -> None:
        """End the session of the token, active or not, if one lives."""
        valid = tokens.parse(token)
        if valid is not None:
            path = "/sesiones/revocacion"
            (await self._ask("POST", path, self._backend, form={"token": valid})).empty()

    async def aclose(self) -> None:
        """Close the running event loop's connections to the service, for good."""
        await self._loops.get().aclose()

    async def __aenter__(self) -> "SessionClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _end(
        self, path: str, caller: str | None, members: Mapping[str, object] | None = None
    ) -> int | Refusal:
        """``caller``: a well-formed token, if it is one."""
        if caller is None:
            return Refusal.UNAUTHENTICATED
        reply = await self._ask("DELETE", path, _caller(caller), members, refusals=[*REFUSALS])
        return REFUSALS[reply.status] if reply.is_refusal else reply.ended()

    async def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        members: Mapping[str, object] | None = None,
        *,
        form: Mapping[str, str] | None = None,
        refusals: Collection[int] = (),
    ) -> "_Reply":
        """``members``: of a JSON body. ``refusals``: the statuses of errors that the caller
        handles; any other one raises StoreUnavailable."""
        try:
            async with (
                Deadline(asyncio.get_running_loop().time() + self._timeout_seconds),
                self._loops.get().take() as connection,
            ):
                response = await connection.request(
                    method, path, headers=headers, json=members, data=form
                )
        except (httpx.HTTPError, RuntimeError, TimeoutError, TypeError, ValueError) as error:
            raise StoreUnavailable(f"no reply of a service: {type(error).__name__}") from error
        reply = _Reply(response)
        if response.status_code not in (200, 201, *refusals):
            raise StoreUnavailable(f"the service answers {response.status_code}")
        return reply


class _Connections:
    """Those of one event loop. Each has an httpx client of its own, which is closed when a call
    fails or is cancelled. A client that many calls share loses connections when calls are
    cancelled, and has none left some time (https://github.com/encode/httpcore/issues/1093)."""

    def __init__(self, open_one: Callable[[], httpx.AsyncClient]) -> None:
        self._open_one = open_one
        self._open: set[httpx.AsyncClient] = set()
        self._idle: deque[tuple[httpx.AsyncClient, float]] = deque()
        """Those without a call, and since when. The last one is the next to be used."""
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)
        self._closed = False

    @asynccontextmanager
    async def take(self) -> AsyncIterator[httpx.AsyncClient]:
        """One for one call. Raises RuntimeError when they are closed."""
        async with self._places:
            if self._closed:
                raise RuntimeError("closed")
            connection = self._idle.pop()[0] if self._idle else self._open_one()
            self._open.add(connection)
            try:
                yield connection
            except BaseException:
                self._open.discard(connection)
                await connection.aclose()
                raise
            now = time.monotonic()
            self._idle.append((connection, now))
            if now - self._idle[0][1] > IDLE_SECONDS_MAX:
                unused, _ = self._idle.popleft()
                self._open.discard(unused)
                await unused.aclose()

    async def aclose(self) -> None:
        """Close them for good, those with a call in flight too."""
        self._closed = True
        self._idle.clear()
        while self._open:
            await self._open.pop().aclose()


class _Reply:
    """A response of the service. Each method raises StoreUnavailable when the response is of
    another shape, for example a proxy's."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.is_refusal = not response.is_success
        self._content = response.content
        headers = response.headers
        if self.is_refusal and not (
            headers.get("content-type") == "application/problem+json"
            and ('realm="sesiones"' in headers.get("www-authenticate", "") or self.status != 401)
        ):
            raise StoreUnavailable(f"something else than a service answers {self.status}")

    def session(self, **expected: object) -> Sesion:
        """The session object, whose fields must have the expected values."""
        with _expected_shape():
            body = orjson.loads(self._content)
            sesion = Sesion._make(body[field] for field in Sesion._fields).validated()
            if any(getattr(sesion, field) != value for field, value in expected.items()):
                raise ValueError("another session")
            return sesion

    def sessions(self, ID_Usuario: int | None) -> list[UserSession]:
        """A list of the user's sessions."""
        with _expected_shape():
            return [
                UserSession(
                    ID_Usuario=ID_Usuario,
                    fingerprint=None,
                    Actual=_bool_or_none(each.get("Actual")),
                    **{field: valid_field(field, each[field]) for field in LISTED},
                )
                for each in orjson.loads(self._content)["Sesiones"]
            ]

    def ended(self) -> int:
        """How many sessions ended."""
        with _expected_shape():
            count = orjson.loads(self._content)["Sesiones_Eliminadas"]
            return valid_integer("Sesiones_Eliminadas", count, (0, INT_MAX))

    def empty(self) -> None:
        """The body is empty."""
        if self._content:
            raise StoreUnavailable("something else than a service answers")

    def errors(self) -> dict[str, str]:
        """What is wrong with each field, in the API's words."""
        with _expected_shape():
            return {
                valid_text("campo", each["campo"]): valid_text("motivo", each["motivo"])
                for each in orjson.loads(self._content)["errores"]
            }

    def raise_for_fields(self) -> None:
        """Raises ValueError when the service refuses a field."""
        if self.status == 422:
            raise ValueError(", ".join(f"{field} {why}" for field, why in self.errors().items()))


@contextmanager
def _expected_shape() -> Iterator[None]:
    try:
        yield
    except MALFORMED_REPLY_ERRORS as error:
        raise StoreUnavailable(f"no reply of a service: {type(error).__name__}") from error


def _bool_or_none(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise TypeError("Actual must be true or false")


def _caller(token: str) -> dict[str, str]:
    return {"x-auth-token": token}
