"""What lies in Redis, seen without the store: the names of the keys, the record of a session as
lua/session.lua describes it, and the index of a user. With the default prefix."""

import base64
import hashlib
from contextlib import suppress
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import OutOfMemoryError

from sesiones import tokens
from sesiones.sesion import Sesion
from sesiones.store.scripts import Script

NUMBERS = "inicio", "uso", "ventana", "estado", "id", "usuario"
IDLE, MAX = 1800, 43_200
"""The window and the longest life of a session, by default."""
NEIGHBOUR = 2061
"""A user in the bucket of user 7, which is "eQ". User 8 is in another one."""


def lua(name: str) -> str:
    """The source of a script, without the arguments that the store adds to each."""
    text = (files("sesiones.store") / "lua" / f"{name}.lua").read_text("utf-8")
    first, _, body = text.partition("\n")
    made = "local actor, keep, invalidated, traces = '', 0, {}, {}"
    return f"{first}\n{made}\n{Script(name).shared}{body}"


# Names.


def base(ID_Usuario: int) -> str:
    return f"sesiones:{{{tokens.user_bucket(ID_Usuario)}}}:"


def index_key(ID_Usuario: int) -> str:
    return f"{base(ID_Usuario)}u:{ID_Usuario}"


def counter_key(ID_Usuario: int) -> str:
    return f"{base(ID_Usuario)}n"


def digest(token: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).decode()[:22]


def session_key(token: str) -> str:
    return f"sesiones:{{{token[4:6]}}}:h:{digest(token)}"


def slot_of(ID_Usuario: int) -> int:
    return key_slot(tokens.user_bucket(ID_Usuario).encode())


# What is there.


def now(redis: Redis) -> int:
    """The second of Redis's clock."""
    seconds: int = redis.time()[0]
    return seconds


def keys(redis: Redis) -> list[str]:
    # A set, because SCAN may return a key twice while Redis resizes its table of keys.
    return sorted({key.decode() for key in redis.scan_iter() if isinstance(key, bytes)})


def state(redis: Redis) -> dict[str, Any]:
    """Everything that is in Redis: the value of each key, and its expiry."""
    read: dict[Any, Any] = {
        b"hash": redis.hgetall,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"string": redis.get,
    }
    return {key: (read[redis.type(key)](key), redis.expiretime(key)) for key in keys(redis)}


def index(redis: Redis, ID_Usuario: int) -> dict[str, int]:
    """The expiry of each session in the user's index, by digest."""
    entries: list[Any] = redis.zrange(index_key(ID_Usuario), 0, -1, withscores=True)
    return {member.decode(): int(score) for member, score in entries}


def indexed(*sesiones: Sesion | None) -> dict[str, int]:
    """The index that there should be for the sessions."""
    return {digest(s.Token_Sesion): s.Fecha_Expiracion for s in sesiones if s is not None}


def record(redis: Redis, key: str) -> dict[str, str]:
    """The fields of a session's record, by name; and ``actividad``, which follows from them."""
    stored = redis.hget(key, "1")
    text = stored.decode() if isinstance(stored, bytes) else str(stored)
    numbers, _, device = text.partition(":")
    fields = dict(zip(NUMBERS, numbers.split(" "), strict=True))
    actividad = int(fields["inicio"]) + int(fields["uso"])
    return fields | {"dispositivo": device, "actividad": str(actividad)}


# Changes.


def write_record(redis: Redis, key: str, **changes: object) -> None:
    """The same with some of its fields changed. ``actividad`` before the beginning moves that."""
    fields: dict[str, object] = {**record(redis, key), **changes}
    if "actividad" in changes:
        actividad = int(str(changes["actividad"]))
        fields["inicio"] = min(int(str(fields["inicio"])), actividad)
        fields["uso"] = actividad - int(str(fields["inicio"]))
    numbers = " ".join(str(fields[name]) for name in NUMBERS)
    redis.hset(key, "1", f"{numbers}:{fields['dispositivo']}")


def age(redis: Redis, sesion: Sesion, seconds: int) -> Sesion:
    """Shift a session into the past, as if time had passed: all its dates, and its index entry."""
    key = session_key(sesion.Token_Sesion)
    write_record(redis, key, inicio=int(record(redis, key)["inicio"]) - seconds)
    expiry = redis.expiretime(key) - seconds
    redis.expireat(key, expiry)
    redis.zadd(index_key(sesion.ID_Usuario), {digest(sesion.Token_Sesion): expiry})
    return sesion._replace(
        Fecha_Inicio=sesion.Fecha_Inicio - seconds,
        Ultima_Actividad=sesion.Ultima_Actividad - seconds,
        Fecha_Expiracion=expiry,
    )


def evict(redis: Redis) -> None:
    """Let Redis evict a key: with a policy other than noeviction."""
    redis.config_set("maxmemory", "1")
    with suppress(OutOfMemoryError):
        redis.set("x", "y")
    redis.config_set("maxmemory", "0")
    assert redis.info("stats")["evicted_keys"] > 0


def create_arguments(
    user: int, device: str, *, limit: int = 1000, idle: int = IDLE
) -> list[int | str]:
    """ARGV of lua/create.lua for a login that asks for nothing more."""
    bucket = tokens.bucket_number(tokens.user_bucket(user))
    return [bucket, user, device, idle, idle, "", limit, "end", "", "", 0, 2]


def client_ids(redis: Redis) -> set[str]:
    """The connections to the server. Others than the test's may end meanwhile, so their number says
    less."""
    return {client["id"] for client in redis.client_list()}
