"""What a client knows about sessions, and which answers contradict it.

Answers to requests that overlap may come in any order, so an answer is judged by what was certain
while its request was out: a 200 is wrong when the session's end had been acknowledged before the
request was sent, or it had expired by then; a 401 is wrong when no request to end the session had
been sent by the time the answer came, and it had not been due to expire.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

CLOCK_SECONDS = 5
"""How far this machine's clock and Redis's may differ: near its expiry, a 401 is no surprise."""

FIXED = ("ID_Sesion", "ID_Usuario", "Fecha_Inicio")
RISING = ("Ultima_Actividad", "Fecha_Expiracion")


@dataclass
class _Known:
    """A session. ``values``: what its answers said; ``enders``: requests that were sent to end
    it; ``ended``: one of them was acknowledged."""

    values: dict[str, int]
    enders: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Sent:
    """What was known when a request with the token was sent."""

    token: str
    ends: tuple[str, ...]
    ended: bool
    at: float
    values: Mapping[str, int]


class Ledger:
    """The sessions of one client, or of several that share it. ``clock``: epoch seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._sessions: dict[str, _Known] = {}

    def add(self, token: str, values: Mapping[str, int]) -> None:
        """A live session, and what is known of its numbers."""
        self._sessions[token] = _Known(dict(values))

    def forget(self, token: str) -> None:
        del self._sessions[token]

    def sent(self, token: str, ends: Iterable[str] = ()) -> Sent:
        """To be called before each request with the token. ``ends``: the tokens of the sessions
        that the request ends: from now on they may end at any time."""
        known = self._sessions[token]
        sent = Sent(token, tuple(ends), known.ended, self._clock(), dict(known.values))
        for each in sent.ends:
            self._sessions[each].enders += 1
        return sent

    def judge(self, sent: Sent, status: int, answer: Mapping[str, int]) -> str | None:
        """What is wrong with the answer, in words that are the same for each such case; or None.

        ``answer``: those of the session's numbers that came with a 200. Of other statuses than
        200 and 401 a ledger knows nothing.
        """
        known = self._sessions[sent.token]
        if status == 401:
            others = known.enders - sent.ends.count(sent.token)
            expires = known.values.get("Fecha_Expiracion")
            if others:
                return None
            if expires is None:  # it may have expired before it was first asked for
                return "401 for a seeded session: seed again?"
            expired = self._clock() > expires - CLOCK_SECONDS
            return None if expired else "401 for a live session"
        if status != 200:
            return None
        for token in sent.ends:
            self._sessions[token].ended = True
        if sent.ended:
            return "200 after an acknowledged logout"
        if "ID_Usuario" not in answer and not sent.ends:
            return "200 without ID_Usuario"
        for name in FIXED:
            if name in sent.values and answer.get(name, sent.values[name]) != sent.values[name]:
                return f"another {'user' if name == 'ID_Usuario' else 'session'}'s {name}"
        for name in RISING:
            if name in sent.values and answer.get(name, sent.values[name]) < sent.values[name]:
                return f"{name} ran backwards"
        if sent.at > answer.get("Fecha_Expiracion", math.inf) + CLOCK_SECONDS:
            return "200 after its own Fecha_Expiracion"
        for name in (*FIXED, *RISING):
            if name in answer:
                known.values[name] = max(answer[name], known.values.get(name, 0))
        return None


def numbers(headers: Mapping[str, str], body: bytes) -> dict[str, int]:
    """A session's numbers in a 200: of its object, or else of the headers of a check, whose names
    are in lower case. Raises ValueError."""
    if body:
        session = json.loads(body)
        if not isinstance(session, dict):
            raise ValueError("not an object")
        found = {name: session[name] for name in (*FIXED, *RISING) if name in session}
        if not all(type(value) is int for value in found.values()):
            raise ValueError("not a number")
        return found
    named = {name: headers.get(f"x-{name.replace('_', '-').lower()}") for name in (*FIXED, *RISING)}
    return {name: int(value) for name, value in named.items() if value is not None}
