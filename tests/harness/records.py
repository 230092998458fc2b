"""The record of a session in Redis, as lua/session.lua describes it."""

from redis import Redis

NUMBERS = "inicio", "uso", "ventana", "estado", "id", "usuario"


def record(redis: Redis, key: str) -> dict[str, str]:
    """The fields of a session's record, by name; and ``actividad``, which follows from them."""
    stored = redis.hget(key, "1")
    text = stored.decode() if isinstance(stored, bytes) else str(stored)
    numbers, _, device = text.partition(":")
    fields = dict(zip(NUMBERS, numbers.split(" "), strict=True))
    actividad = int(fields["inicio"]) + int(fields["uso"])
    return fields | {"dispositivo": device, "actividad": str(actividad)}


def write_record(redis: Redis, key: str, **changes: object) -> None:
    """The same with some of its fields changed. ``actividad`` before the beginning moves that."""
    fields: dict[str, object] = {**record(redis, key), **changes}
    if "actividad" in changes:
        actividad = int(str(changes["actividad"]))
        fields["inicio"] = min(int(str(fields["inicio"])), actividad)
        fields["uso"] = actividad - int(str(fields["inicio"]))
    numbers = " ".join(str(fields[name]) for name in NUMBERS)
    redis.hset(key, "1", f"{numbers}:{fields['dispositivo']}")
