"""Judges by the contract what the service answered to the bytes of one connection.

The oracle is no second implementation. It finds the request lines that the bytes could hold, and
with them the statuses and the bodies that the contract allows. Then it checks what every response
must have, and that each caller that was let in had sent a credential.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import orjson

from tests.harness import contract
from tests.harness.contract import (
    ACTIVE,
    COUNT,
    EMPTY,
    IDENTITY,
    LIST,
    OTHER,
    OWN_LIST,
    SESSION,
    Operation,
)

TOKEN = re.compile(contract.TOKEN_PATTERN.encode())
_FIRST = re.compile(rb"[\r\n]*([A-Z-]+) +([!-~]+) +HTTP/1\.([01])\r\n")
_LINE = re.compile(rb"(?:[A-Z-]*(GET|HEAD|POST|PUT|DELETE)|[A-Z-]+) +([!-~]+) +HTTP/1\.[01]\r\n")
"""What could be a request line, wherever the message before it ends."""
_PLAIN = re.compile(
    rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) /(?!/)[!\"$-~]{0,900} HTTP/1\.1\r\nHost: h\r\n"
    rb"(?:(?i:x-auth-token|authorization|cookie): ?[ -~]{0,500}\r\n){0,9}\r\n"
)
"""One request without a body that is surely well-formed HTTP, and nothing else."""
_PATH = re.compile(rb"(?:[A-Za-z]+://[^/?#]*)?([^?#]*)")
_CREDENTIAL = re.compile(
    rb"\n(?:x-auth-token:[ \t]*|authorization:[ \t]*bearer +)"
    rb"(ses_[A-Za-z0-9_-]{45})[ \t]*(?=\r\n)",
    re.IGNORECASE,
)
_PRESENTED = re.compile(
    rb"\nx-auth-token:|\nauthorization:[ \t]*bearer(?: |[ \t]*\r)", re.IGNORECASE
)
_KEPT = re.compile(
    rb" HTTP/1\.0\r\n(?:.*\n)?connection:[^\n]*keep-alive", re.IGNORECASE | re.DOTALL
)
_CODED = re.compile(rb"\ntransfer-encoding:", re.IGNORECASE)
_CHUNK_LINE = re.compile(rb"\r\n[0-9A-Fa-f]+[^\r\n]*\r\n")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_READ = Operation(200, OTHER)
_ROUTES = contract.OPERATIONS | {
    path: {"GET": _READ, "HEAD": _READ} for path in contract.OPERATORS_PATHS
}
_FIELDS = {*contract.FIELDS, *contract.LOGIN}
_PROBLEM = "problem"
_MALFORMED = frozenset((status, _PROBLEM) for status in (400, 431, 501))
_PROBED = re.compile(b"|".join(map(str.encode, contract.OPERATORS_PATHS)))
_STARTS = {b'{"ID_Sesion"': SESSION, b'{"Sesiones_': COUNT, b'{"active"': ACTIVE}
_ALWAYS = {"date", "cache-control", "content-length"}
_KNOWN = _ALWAYS | {"content-type", "connection", *IDENTITY, *contract.ERROR_HEADERS}
_KNOWN |= {"content-security-policy", "referrer-policy", "x-content-type-options"}
_VALUES: dict[str, set[str | None]] = {
    "cache-control": {"no-store"},
    "connection": {None, "close", "keep-alive"},
    "accept-encoding": {None, "identity"},
    "www-authenticate": {None, *contract.CHALLENGES},
}
"""What fields may be; None stands for a field that is not there."""


class Violation(Exception):
    """An answer that the contract does not have."""


def _fail(why: str, *what: object) -> NoReturn:
    raise Violation(f"{why}: {', '.join(map(repr, what))}")


@dataclass(frozen=True)
class _Head:
    status: int
    fields: Mapping[str, str]
    length: int

    def shows(self, body: bytes) -> str:
        """What the response shows, in the words of the contract."""
        kind = self.fields.get("content-type")
        if self.status >= 400:
            return _PROBLEM
        if IDENTITY[0] in self.fields:
            if kind is None and not self.length:
                return contract.IDENTITY_ONLY
            object_too = kind == contract.JSON and self.length > 0
            return contract.IDENTITY_AND_SESSION if object_too else "identity and something else"
        if kind is None and not self.length:
            return EMPTY
        if kind == contract.JSON:
            if body.startswith(b'{"Sesiones":'):
                return OWN_LIST if b'"Actual":' in body else LIST
            for start, shows in _STARTS.items():
                if body.startswith(start):
                    return shows
        return OTHER


@lru_cache(2048)
def _head(head: bytes) -> _Head:
    line, *lines = head.split(b"\r\n")
    match = re.fullmatch(rb"HTTP/1\.1 ([2-5][0-9]{2}) [A-Z][A-Za-z ]*", line)
    if match is None:
        _fail("no status line", line)
    status = int(match[1])
    pairs = [field.decode("latin-1").partition(": ") for field in lines]
    fields = {name: value for name, _, value in pairs}
    if len(fields) < len(pairs) or fields.keys() - _KNOWN or fields.keys() < _ALWAYS:
        _fail("fields repeated, unknown or missing", head)
    for name, values in _VALUES.items():
        if fields.get(name) not in values:
            _fail(name, head)
    for name, statuses in contract.ERROR_HEADERS.items():
        needed = status in statuses and name != "accept-encoding"
        if (name in fields and status not in statuses) or (needed and name not in fields):
            _fail(name, head)
    if status >= 400 and fields.get("content-type") != contract.PROBLEM:
        _fail("an error that is no problem document", head)
    if len(set(IDENTITY) & fields.keys()) not in ((0, 3) if status == 200 else (0,)):
        _fail("half an identity, or an identity in an error", head)
    if not fields["content-length"].isdigit():
        _fail("content-length", head)
    return _Head(status, fields, int(fields["content-length"]))


def _members(body: bytes) -> dict[str, Any]:
    """The JSON object that the body is."""
    try:
        members: dict[str, Any] = orjson.loads(body)
        return dict(members)
    except (ValueError, TypeError):
        _fail("no JSON object", body)


@lru_cache(4096)
def _check_problem(status: int, body: bytes) -> None:
    problem = _members(body)
    errores = problem.pop("errores", None)
    sessions = problem.pop("Sesiones", None) if status == 409 else None
    expected = {"type": "about:blank", "title": contract.TITLES.get(status), "status": status}
    if not isinstance(problem.pop("detail", None), str) or problem != expected:
        _fail("problem document", body)
    if (errores is not None) != (status in contract.WITH_FIELDS and sessions is None):
        _fail("errores", body)
    for error in errores or ():
        if list(error) != ["campo", "motivo"] or error["campo"] not in _FIELDS:
            _fail("errores", body)
    if TOKEN.search(body):
        _fail("a token in an error", body)


@lru_cache(4096)
def _allowed(method: bytes, target: bytes) -> frozenset[tuple[int, str]]:
    """The status of each answer to one well-formed request, with what it shows."""
    match = _PATH.fullmatch(target.partition(b"?")[0].partition(b"#")[0])
    path = contract.path_of(match[1].decode()) if match else ""
    if f"{path}/".startswith(f"{contract.VERIFY_PATH}/"):
        operation: Operation | None = contract.VERIFY
    elif path not in _ROUTES:
        return frozenset({(404, _PROBLEM)})
    else:
        operation = _ROUTES[path].get(method.decode())
    if operation is None:
        return frozenset({(405, _PROBLEM)})
    # The 404 of an operation with numbers in its path is that of a path without one.
    unseen = {operation.success} | ({404} if "{" in path else set())
    errors = operation.statuses - unseen
    shows = {operation.shows}
    if method == b"HEAD" and operation.shows in (OWN_LIST, LIST):
        shows = {OTHER}  # the body would say what it is
    elif operation.shows == OTHER:
        shows.add(EMPTY)
    successes = ((operation.success, one) for one in shows)
    return frozenset({*successes, *((one, _PROBLEM) for one in errors)})


class Oracle:
    """``live``: the tokens and users, by ID_Sesion, of the sessions that may be let in. Sessions
    that are created are added to it. ``key``: the service key."""

    def __init__(self, live: dict[int, tuple[bytes, int]], key: bytes) -> None:
        self.live = live
        self._key = key

    def check(self, data: bytes, received: bytes, *, closed: bool) -> list[int]:
        """The statuses of the answers to the data. ``closed``: the connection has been closed, by
        the service or because the client had ended. Raises Violation."""
        first = _FIRST.match(data)
        plain = _PLAIN.fullmatch(data) is not None
        requests: list[tuple[bytes, bytes]] = []
        statuses: list[int] = []
        allowed = frozenset() if plain else _MALFORMED
        if first:
            allowed |= _allowed(first[1], first[2][:200])
        while received:
            if received.startswith(_CONTINUE):
                if b"100-continue" not in data.lower():
                    _fail("100 without an expectation", received)
                received = received[len(_CONTINUE) :]
                continue
            text, blank, received = received.partition(b"\r\n\r\n")
            if not blank:
                _fail("half a head", text)
            head = _head(text)
            bare = head.length > 0 and (not received or received.startswith(b"HTTP/1.1 "))
            if bare and b"HEAD " not in data:
                _fail("an answer without its body", text)
            body = b"" if bare else received[: head.length]
            if not bare and len(body) < head.length:
                _fail("half a body", text, body)
            received = received[len(body) :]
            shows = head.shows(body)
            if (head.status, shows) not in allowed:
                _fail("not an answer to what was asked", head.status, shows, sorted(allowed))
            # The head of the first request is known: a credential behind it is no reason.
            seen = data if statuses else data.lstrip(b"\r\n").partition(b"\r\n\r\n")[0] + b"\r\n"
            self._check_answer(data, seen, head, body, shows, bare=bare)
            if not statuses and IDENTITY[0] in head.fields and len(_PRESENTED.findall(seen)) > 1:
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
        if len(statuses) > len(requests) + 1 or (plain and not statuses):
            _fail("more answers than requests, or none to a good request", statuses)
        return statuses

    def _check_answer(
        self, data: bytes, seen: bytes, head: _Head, body: bytes, shows: str, *, bare: bool
    ) -> None:
        """``seen``: the part of the data in which the credential can be."""
        if shows == _PROBLEM:
            if not bare:
                _check_problem(head.status, body)
            challenge = head.fields.get("www-authenticate")
            if challenge and contract.CHALLENGES[challenge] and not _PRESENTED.search(data):
                _fail("invalid_token, where none was sent", data)
        elif shows == SESSION:
            self._check_written(data, body, created=head.status == 201)
        elif shows == COUNT:
            count = _members(body)
            if list(count) != ["Sesiones_Eliminadas"] or count["Sesiones_Eliminadas"] < 0:
                _fail("count", body)
            if self._key not in seen:
                self._check_credential(seen, {token for token, _ in self.live.values()})
        elif shows == OWN_LIST:
            self._check_own_list(seen, body)
        elif shows in (LIST, ACTIVE) or (shows == EMPTY and not _PROBED.search(data)):
            self._check_backend(data, body, shows)
        elif shows not in (OTHER, EMPTY):
            self._check_identity(seen, head.fields, body)

    def _check_identity(self, seen: bytes, fields: Mapping[str, str], body: bytes) -> None:
        """The answer to a check. The body is empty in that to a HEAD, and in verificar."""
        usuario, id_, expiracion = (int(fields[name]) for name in IDENTITY)
        token, user = self.live.get(id_, (b"", -1))
        if user != usuario:
            _fail("let in as another user, or with a session that is not live", dict(fields))
        self._check_credential(seen, {token})
        if body:
            sesion = self._session(body)
            expected = id_, usuario, token.decode(), expiracion, 1
            names = "ID_Sesion", "ID_Usuario", "Token_Sesion", "Fecha_Expiracion", "Estado_Sesion"
            if tuple(sesion[name] for name in names) != expected:
                _fail("another session's object", body, expected)

    def _check_written(self, data: bytes, body: bytes, *, created: bool) -> None:
        """The answer to POST or PUT."""
        sesion = self._session(body)
        token = sesion["Token_Sesion"].encode()
        if self._key not in data:
            _fail("written without the service key", data)
        if created:
            if token in data or not TOKEN.fullmatch(token):
                _fail("not a new token", token)
            self.live[sesion["ID_Sesion"]] = token, sesion["ID_Usuario"]
        elif token not in data and token not in _CHUNK_LINE.sub(b"", data):
            _fail("a token that was not sent", token)

    def _check_own_list(self, seen: bytes, body: bytes) -> None:
        own = self._listed(body, [*contract.LISTED, "Actual"])
        actual = [session["ID_Sesion"] for session in own if session["Actual"]]
        if len(actual) != 1:
            _fail("not one session is the caller's", body)
        token, user = self.live.get(actual[0], (b"", -1))
        self._check_credential(seen, {token})
        for session in own:
            if self.live.get(session["ID_Sesion"], (b"", user))[1] != user:
                _fail("another user's session in a list", body)

    def _check_backend(self, data: bytes, body: bytes, shows: str) -> None:
        """A user's list, an introspection, or the answer to a revocation."""
        if self._key not in data:
            _fail("answered without the service key", data)
        if shows == LIST:
            self._listed(body, contract.LISTED)
        elif shows == ACTIVE and (found := _members(body)) != {"active": False}:
            token, user = self.live.get(int(found["sid"]), (b"", -1))
            sent = token in data or token in _CHUNK_LINE.sub(b"", data)
            if list(found) != contract.INTROSPECTION or found["sub"] != str(user) or not sent:
                _fail("not the introspection of a token that was sent", body)

    @staticmethod
    def _listed(body: bytes, members: list[str]) -> list[dict[str, Any]]:
        sessions: list[dict[str, Any]] = _members(body)["Sesiones"]
        if any(list(session) != members for session in sessions) or TOKEN.search(body):
            _fail("list", body)
        return sessions

    def _session(self, body: bytes) -> dict[str, Any]:
        sesion = _members(body)
        if list(sesion) != contract.FIELDS:
            _fail("object", body)
        return sesion

    def _check_credential(self, seen: bytes, tokens: set[bytes]) -> None:
        """One of these tokens is in a field of a head."""
        if not tokens & set(_CREDENTIAL.findall(seen)):
            _fail("let in without a credential", seen)
