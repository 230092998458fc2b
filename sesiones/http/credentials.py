"""Credentials: the caller's token, and the service keys of the backend.

Headers are ASGI's: lists of (lower-case name, value) in bytes. caller_token() and
ServiceKeys.admit() return two values: the token, or whether the request is admitted; and whether
the request had a credential that counts, valid or not, which decides about error="invalid_token"
in the 401.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence

from sesiones import tokens

Headers = Sequence[tuple[bytes, bytes]]

_BEARER = re.compile(rb"bearer(?: +(.*))?", re.IGNORECASE | re.DOTALL)  # RFC 9110, 11.4


def _bearers(authorizations: list[bytes]) -> list[bytes]:
    """The credentials of the Bearer scheme; another scheme does not count."""
    matches = [match for value in authorizations if (match := _BEARER.fullmatch(value))]
    return [match[1] or b"" for match in matches]


def _cookies(header: bytes, name: bytes) -> list[bytes]:
    """The values of the cookies of that name. A browser sends several when their paths differ."""
    pairs = (pair.strip().partition(b"=") for pair in header.split(b";"))
    return [value for key, _, value in pairs if key == name]


def caller_token(headers: Headers, cookie: bytes | None = None) -> tuple[str | None, bool]:
    """The one well-formed token of x-auth-token or Authorization: Bearer. ``cookie``: the name of a
    cookie that counts as well, in an API node; the service reads none."""
    sent = []
    authorizations = []
    for name, value in headers:
        if name == b"x-auth-token":
            sent.append(value)
        elif name == b"authorization":
            authorizations.append(value)
        elif name == b"cookie" and cookie is not None:
            sent += _cookies(value, cookie)
    if authorizations:
        bearers = _bearers(authorizations)
        sent += bearers
        if bearers and len(authorizations) > 1:
            return None, True
    token = tokens.parse(sent[0].decode("latin-1")) if len(sent) == 1 else None
    return token, bool(sent)


class ServiceKeys:
    """The keys that the backend's endpoints accept. ``open_without_key``: when there are none,
    every request is admitted instead of none."""

    def __init__(self, keys: Iterable[str], *, open_without_key: bool) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._open = open_without_key and not self._digests

    def admit(self, headers: Headers) -> tuple[bool, bool]:
        """Whether exactly one key was sent and is one of these; and whether any was sent. The time
        that this takes tells nothing about the keys: each of them is compared, by its digest."""
        authorizations = [value for name, value in headers if name == b"authorization"]
        bearers = _bearers(authorizations)
        if self._open:
            return True, bool(bearers)
        given = hashlib.sha256(bearers[0] if bearers else b"").digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return len(authorizations) == 1 and any(matches), bool(bearers)
