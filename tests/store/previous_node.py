"""A node of the version before sessions had a life of their own: its scripts, which a rolling
upgrade leaves running for a while on the Redis of the new ones."""

from pathlib import Path
from typing import Any

from redis import Redis

from sesiones import tokens
from sesiones.sesion import Sesion
from tests.harness.records import IDLE, MAX, counter_key, index_key, session_key

SCRIPTS = Path(__file__).parent / "previous"


def previous_lua(name: str) -> str:
    """The source of a script of that version, without the tag of its call."""
    first, _, rest = (SCRIPTS / f"{name}.lua").read_text("utf-8").partition("\n")
    return f"{first}\n{(SCRIPTS / 'session.lua').read_text('utf-8')}\n{rest}"


class PreviousNode:
    """What that version did for each operation, with the default settings."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    def create(self, ID_Usuario: int, Dispositivo: str, limit: int = 1000) -> Sesion:
        token = tokens.make(ID_Usuario)
        bucket = tokens.bucket_number(tokens.bucket(token))
        keys = session_key(token), index_key(ID_Usuario), counter_key(ID_Usuario)
        arguments = bucket, ID_Usuario, Dispositivo, IDLE, MAX, limit
        text, expiry, *_ = self._eval("create", keys, *arguments)
        return _sesion(token, text, expiry)

    def find(self, token: str, touch: int = 1) -> Sesion | None:
        key = session_key(token)
        text, expiry, *_ = self._eval("check", (key,), touch, MAX, key)
        sesion = None if text is None else _sesion(token, text, expiry)
        return sesion if sesion is not None and sesion.Estado_Sesion == 1 else None

    def update(self, given: Sesion) -> Sesion | str:
        """The updated session, or the first word of the script's reply."""
        id_, user, token, *rest = given
        inicio, expiracion, estado, actividad, device = rest
        arguments = id_, user, inicio, expiracion, estado, actividad, device, MAX
        word, *reply = self._eval("update", (session_key(token),), *arguments)
        return _sesion(token, *reply) if word == b"ok" else str(word.decode())

    def end(self, caller: str, designated: str) -> int:
        """How many ended."""
        ended = self._eval("end", (session_key(caller), session_key(designated)))
        return len(ended)

    def end_all(self, caller: str) -> int:
        """How many ended."""
        ended = self._eval("end_all", (session_key(caller), session_key(caller)))
        return len(ended)

    def _eval(self, name: str, keys: tuple[str, ...], *arguments: object) -> Any:
        return self._redis.eval(previous_lua(name), len(keys), *keys, *arguments)


def _sesion(token: str, text: bytes, expiry: int) -> Sesion:
    numbers, _, device = text.decode().partition(":")
    inicio, uso, _, estado, id_, user = map(int, numbers.split(" "))
    return Sesion(id_, user, token, inicio, expiry, estado, inicio + uso, device)
