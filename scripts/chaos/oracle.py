"""What the contract (docs/api.es.md) lets the service answer to the bytes of one connection.

It is no second service: it finds the request lines that the bytes could hold, and with them the
statuses that they could have; then it looks at what each answer must be whatever was asked, and
that whoever was let in had a reason in the bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import orjson

from sesiones.http.problems import TITLES
from sesiones.sesion import Sesion

TOKEN = re.compile(rb"ses_[A-Za-z0-9_-]{45}")
_FIRST = re.compile(rb"[\r\n]*([A-Z-]+) +([!-~]+) +HTTP/1\.([01])\r\n")
_LINE = re.compile(rb"(?:[A-Z-]*(GET|HEAD|POST|PUT|DELETE)|[A-Z-]+) +([!-~]+) +HTTP/1\.[01]\r\n")
"""What could be one, wherever the message before it ends."""
_PATH = re.compile(rb"(?:[A-Za-z]+://[^/?#]*)?([^?#]*)")
_CREDENTIAL = re.compile(
    rb"\n(?:x-auth-token:[ \t]*|authorization:[ \t]*bearer +)"
    rb"(ses_[A-Za-z0-9_-]{45})[ \t]*(?=\r\n)",
    re.IGNORECASE,
)
_PRESENTED = re.compile(
    rb"\nx-auth-token:|\nauthorization:[ \t]*bearer(?: |[ \t]*\r)", re.IGNORECASE
)
_KEPT = re.compile(rb" HTTP/1\.0\r\n.*\nconnection:[^\n]*keep-alive", re.IGNORECASE | re.DOTALL)
_CODED = re.compile(rb"\ntransfer-encoding:", re.IGNORECASE)
_CHUNK_LINE = re.compile(rb"\r\n[0-9A-Fa-f]+[^\r\n]*\r\n")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_BODY = {400, 401, 413, 415, 422}
_CHECK = {200, 401}
_READ = {"GET": {200}, "HEAD": {200}}
ROUTES: Mapping[str, Mapping[str, set[int]]] = {
    "/sesiones": {"POST": {201} | _BODY, "PUT": {200, 404, 409} | _BODY},
    "/sesiones/self": {"GET": _CHECK, "HEAD": _CHECK},
    "/sesiones/logout": {"DELETE": {200, 403} | _BODY},
    "/sesiones/logoutAll": {"DELETE": {200, 403} | _BODY},
    "/openapi.json": _READ,
    "/docs": _READ,
    "/metrics": _READ,
    "/livez": _READ,
    "/readyz": _READ,
    "/healthz": _READ,
}
_MALFORMED = {400, 431, 501}
_IDENTITY = ("x-id-usuario", "x-id-sesion", "x-fecha-expiracion")
_ALWAYS = {"date", "cache-control", "content-length"}
_SOMETIMES = {"content-type", "connection", "www-authenticate", "allow", "accept-encoding"}
_SOMETIMES.update(_IDENTITY)
_PAGE = {"content-security-policy", "referrer-policy", "x-content-type-options"}
_CHALLENGES = {
    'Bearer realm="sesiones"': False,
    'Bearer realm="sesiones", error="invalid_token"': True,
}


class Violation(Exception):
    """An answer that the contract does not have."""


def _fail(why: str, *what: object) -> NoReturn:
    raise Violation(f"{why}: {', '.join(map(repr, what))}")


@dataclass(frozen=True)
class _Head:
    status: int
    fields: Mapping[str, str]
    length: int


@lru_cache(2048)
def _head(head: bytes) -> _Head:
    line, *lines = head.split(b"\r\n")
    match = re.fullmatch(rb"HTTP/1\.1 ([2-5][0-9]{2}) [A-Z][A-Za-z ]*", line)
    if match is None:
        _fail("no status line", line)
    pairs = [field.decode("latin-1").partition(": ") for field in lines]
    fields = {name: value for name, _, value in pairs}
    status = int(match[1])
    unknown = fields.keys() - _ALWAYS - _SOMETIMES - _PAGE
    if len(fields) < len(pairs) or unknown or fields.keys() < _ALWAYS:
        _fail("fields repeated, unknown or missing", head)
    if fields["cache-control"] != "no-store" or not fields["content-length"].isdigit():
        _fail("fields", head)
    if fields.get("connection", "close") not in ("close", "keep-alive"):
        _fail("connection", head)
    if fields.get("accept-encoding", "identity") != "identity":
        _fail("accept-encoding", head)
    if "accept-encoding" in fields and status != 415:
        _fail("accept-encoding", head)
    if (fields.get("www-authenticate") in _CHALLENGES) != (status == 401):
        _fail("www-authenticate", head)
    if ("allow" in fields) != (status == 405):
        _fail("allow", head)
    if status >= 400 and fields.get("content-type") != "application/problem+json":
        _fail("an error that is no problem document", head)
    if len(set(_IDENTITY) & fields.keys()) not in (0, 3):
        _fail("half an identity", head)
    if status != 200 and set(_IDENTITY) & fields.keys():
        _fail("an identity in an error", head)
    return _Head(status, fields, int(fields["content-length"]))


@lru_cache(4096)
def _check_problem(status: int, body: bytes) -> None:
    problem = orjson.loads(body)
    errores = problem.pop("errores", None)
    expected = {"type": "about:blank", "title": TITLES.get(status), "status": status}
    if not isinstance(problem.pop("detail", None), str) or problem != expected:
        _fail("problem document", body)
    if (errores is not None) != (status in (409, 422)):
        _fail("errores", body)
    for error in errores or ():
        if list(error) != ["campo", "motivo"] or error["campo"] not in Sesion._fields:
            _fail("errores", body)


@lru_cache(4096)
def _allowed(method: bytes, target: bytes) -> frozenset[int]:
    """The statuses of one request, were it well-formed."""
    match = _PATH.fullmatch(target.partition(b"?")[0].partition(b"#")[0])
    path = match[1].decode() if match else ""
    if path == "/sesiones/verificar" or path.startswith("/sesiones/verificar/"):
        return frozenset(_CHECK)
    methods = ROUTES.get(path)
    return frozenset({404} if methods is None else methods.get(method.decode(), {405}))


class Oracle:
    """``live``: the sessions that may be let in, by ID_Sesion: their tokens and users. Sessions
    that are made are added to it. ``key``: the service key."""

    def __init__(self, live: dict[int, tuple[bytes, int]], key: bytes) -> None:
        self.live = live
        self._key = key

    def check(self, data: bytes, received: bytes, *, closed: bool) -> list[int]:
        """The statuses of what was answered to the data. ``closed``: by the service, or because
        the client had ended. Raises Violation."""
        first = _FIRST.match(data)
        requests: list[tuple[bytes, bytes]] = []
        statuses: list[int] = []
        allowed = _MALFORMED | (_allowed(first[1], first[2][:200]) if first else set())
        while received:
            if received.startswith(_CONTINUE):
                if b"100-continue" not in data.lower():
                    _fail("100 for nobody", received)
                received = received[len(_CONTINUE) :]
                continue
            text, blank, received = received.partition(b"\r\n\r\n")
            if not blank:
                _fail("half a head", text)
            head = _head(text)
            if head.status not in allowed:
                _fail("not a status of what was asked", head.status, sorted(allowed))
            bare = head.length > 0 and (not received or received.startswith(b"HTTP/1.1 "))
            if bare and b"HEAD " not in data:
                _fail("an answer without its body", text)
            body = b"" if bare else received[: head.length]
            if not bare and len(body) < head.length:
                _fail("half a body", text, body)
            received = received[len(body) :]
            # Of the first request the head is known: what is behind it is no reason.
            seen = data if statuses else data.lstrip(b"\r\n").partition(b"\r\n\r\n")[0] + b"\r\n"
            self._check_answer(data, seen, head, body, bare=bare)
            if not statuses and _IDENTITY[0] in head.fields and len(_PRESENTED.findall(seen)) > 1:
                _fail("let in with two credentials", data)
            statuses.append(head.status)
            connection = head.fields.get("connection")
            if connection == "close" and (received or not closed):
                _fail("it says that it closes, and goes on", text)
            if connection == "keep-alive" and not _KEPT.search(data):
                _fail("HTTP/1.0 is kept, and did not ask for it", text)
            if head.status == 501 and not _CODED.search(data):
                _fail("501 without a transfer coding", data)
            if "accept-encoding" in head.fields and b"content-encoding" not in data.lower():
                _fail("it asks for no coding where there was none", data)
            if len(statuses) == 1:
                if first and first[3] == b"0" and connection is None:
                    _fail("HTTP/1.0 is not told whether it is kept", text)
                requests = _LINE.findall(data) if received else []
                allowed = _MALFORMED.union(*(_allowed(line[0], line[1][:200]) for line in requests))
        if len(statuses) > len(requests) + 1:
            _fail("more answers than requests", statuses)
        return statuses

    def _check_answer(
        self, data: bytes, seen: bytes, head: _Head, body: bytes, *, bare: bool
    ) -> None:
        """``seen``: where in the data its credential can be."""
        fields = head.fields
        if head.status >= 400:
            if not bare:
                _check_problem(head.status, body)
            elif b"HEAD " not in data:
                _fail("no problem document", data)
            challenge = fields.get("www-authenticate")
            if challenge and _CHALLENGES[challenge] and not _PRESENTED.search(data):
                _fail("invalid_token, where none was sent", data)
            if TOKEN.search(body):
                _fail("a token in an error", body)
        elif _IDENTITY[0] in fields:
            self._check_identity(seen, fields, body, bare=bare)
        elif head.status == 201:
            self._check_object(data, body, made=True)
        elif b"ID_Sesion" in body and body.startswith(b"{"):
            if b"/openapi.json" not in data:
                self._check_object(data, body, made=False)
        elif b"Sesiones_Eliminadas" in body and body.startswith(b"{"):
            count = orjson.loads(body)
            if list(count) != ["Sesiones_Eliminadas"] or count["Sesiones_Eliminadas"] < 0:
                _fail("count", body)
            self._reason(seen, None)
        elif not re.search(rb"/(openapi\.json|docs|metrics|livez|readyz|healthz)", data):
            _fail("a success of nothing", body)

    def _check_identity(
        self, seen: bytes, fields: Mapping[str, str], body: bytes, *, bare: bool
    ) -> None:
        usuario, id_, expiracion = (int(fields[name]) for name in _IDENTITY)
        token, user = self.live.get(id_, (b"", -1))
        if user != usuario:
            _fail("let in as someone else, or with a session that is not live", dict(fields))
        self._reason(seen, token)
        if "content-type" in fields and not bare:
            sesion = self._object(body)
            if (sesion["ID_Sesion"], sesion["ID_Usuario"]) != (id_, usuario):
                _fail("another session's object", body)
            if sesion["Token_Sesion"].encode() != token:
                _fail("another session's token", body)
            if sesion["Estado_Sesion"] != 1 or sesion["Fecha_Expiracion"] != expiracion:
                _fail("object", body)

    def _check_object(self, data: bytes, body: bytes, *, made: bool) -> None:
        """What POST and PUT answer."""
        sesion = self._object(body)
        token = sesion["Token_Sesion"].encode()
        if self._key not in data:
            _fail("written without the service key", data)
        if made:
            if token in data or not TOKEN.fullmatch(token):
                _fail("not a new token", token)
            self.live[sesion["ID_Sesion"]] = token, sesion["ID_Usuario"]
        elif token not in data and token not in _CHUNK_LINE.sub(b"", data):
            _fail("a token that was not sent", token)

    def _object(self, body: bytes) -> dict[str, Any]:
        sesion: dict[str, Any] = orjson.loads(body)
        if tuple(sesion) != Sesion._fields:
            _fail("object", body)
        return sesion

    def _reason(self, seen: bytes, token: bytes | None) -> None:
        """A field of a head carries this token, or for None that of any session."""
        sent = set(_CREDENTIAL.findall(seen))
        if not (sent & ({token} if token else {token for token, _ in self.live.values()})):
            _fail("let in without a credential", seen)
