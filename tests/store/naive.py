"""Naive variants of the store and of its connection, which do what other session stores do: the
scenarios have to catch each of them."""

import random
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from sesiones import tokens
from sesiones.redis_client import Argument, Commands
from sesiones.sesion import NO_LOGIN, BadDates, Immutable, Login, Refusal, Sesion
from sesiones.store import SessionStore
from tests.harness.records import (
    base,
    counter_key,
    create_arguments,
    digest,
    index_key,
    lua,
    session_key,
)
from tests.harness.stores import WrappedCommands
from tests.store.races import PER_USER, Wrap


class Naive(SessionStore):
    """A store that does an operation without a script: step by step, from the client."""

    commands: Commands

    async def command(self, *arguments: Argument) -> Any:
        return await self.commands.execute(*arguments)

    async def record(self, token: str) -> list[str] | None:
        """The numbers of a session's record, and its device."""
        text = await self.command("HGET", session_key(token), "1")
        if text is None:
            return None
        numbers, _, device = text.decode().partition(":")
        return [*numbers.split(" "), device]


class SlidesInSteps(Naive):
    """Reads the session, sees that it is there, and writes its new dates."""

    async def find(self, token: str, *, fresh: bool = False, slide: bool = True) -> Sesion | None:
        key = session_key(token)
        fields = await self.record(token)
        if fields is None:
            return None
        now = int((await self.command("TIME"))[0])
        await self.command("HSET", key, "1", f"{now} 0 {' '.join(fields[2:6])}:{fields[6]}")
        await self.command("EXPIREAT", key, now + 1800)
        await self.command("ZADD", index_key(int(fields[5])), now + 1800, digest(token))
        Fecha_Inicio, _, _, _, ID_Sesion, ID_Usuario = map(int, fields[:6])
        return Sesion(ID_Sesion, ID_Usuario, token, Fecha_Inicio, now + 1800, 1, now, fields[6])


class PutsInSteps(Naive):
    """Sees that the session is there, and writes its fields."""

    async def update(self, given: Sesion) -> Sesion | Immutable | BadDates | None:
        key = session_key(given.Token_Sesion)
        fields = await self.record(given.Token_Sesion)
        if fields is None:
            return None
        await self.command("HSET", key, "1", f"{' '.join(fields[:6])}:{given.Dispositivo}")
        return given


class EndsAllOfAList(Naive):
    """Reads the index, deletes what was in it, deletes the index."""

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        fields = await self.record(caller)
        if fields is None:
            return Refusal.UNAUTHENTICATED
        user = int(fields[5])
        ended = 0
        for member in await self.command("ZRANGE", index_key(user), 0, -1):
            ended += await self.command("DEL", f"{base(user)}h:{member.decode()}")
        await self.command("DEL", index_key(user))
        return ended


class CreatesInSteps(Naive):
    """HSET, then EXPIREAT, then the index."""

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        token = tokens.make(ID_Usuario)
        key, index = session_key(token), index_key(ID_Usuario)
        now = int((await self.command("TIME"))[0])
        number = await self.command("INCR", counter_key(ID_Usuario))
        id_ = number * 4096 + tokens.bucket_number(tokens.bucket(token))
        numbers = f"{now} 0 1800 1 {id_} {ID_Usuario}"
        await self.command("HSET", key, "1", f"{numbers}:{Dispositivo}")
        await self.command("EXPIREAT", key, now + 1800)
        await self.command("ZADD", index, now + 1800, digest(token))
        await self.command("EXPIREAT", index, now + 1800)
        return Sesion(id_, ID_Usuario, token, now, now + 1800, 1, now, Dispositivo)


class BelievesTheKey(Naive):
    """A session is live while its key is there."""

    async def find(self, token: str, *, fresh: bool = False, slide: bool = True) -> Sesion | None:
        fields = await self.record(token)
        if fields is None:
            return None
        Fecha_Inicio, _, _, _, ID_Sesion, ID_Usuario = map(int, fields[:6])
        return Sesion(ID_Sesion, ID_Usuario, token, Fecha_Inicio, 0, 1, 0, "d")


class BelievesTheIndex(Naive):
    """What the index has is what the user has."""

    async def end_all(self, caller: str, designated: str) -> int | Refusal:
        fields = await self.record(caller)
        if fields is None:
            return Refusal.UNAUTHENTICATED
        user = int(fields[5])
        number: int = await self.command("ZCARD", index_key(user))
        ended = await super().end_all(caller, designated)
        return ended if isinstance(ended, Refusal) else number


class TokenPerTry(Naive):
    """Each try of a create makes a token of its own."""

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        while True:
            token = tokens.make(ID_Usuario)
            keys = [session_key(token), index_key(ID_Usuario), counter_key(ID_Usuario)]
            with suppress(RedisConnectionError):
                arguments = create_arguments(ID_Usuario, Dispositivo, limit=PER_USER)
                await self.command("EVAL", lua("create"), len(keys), *keys, *arguments)
                return Sesion(1, ID_Usuario, token, 0, 0, 1, 0, Dispositivo)


class LosesReplies(WrappedCommands):
    """Half of the commands have no reply. Most of those are executed."""

    async def execute(self, *arguments: Argument, **how: Any) -> Any:
        lost = random.random() < 0.5
        if not lost or random.random() < 0.8:
            reply = await super().execute(*arguments, **how)
        if lost:
            raise RedisConnectionError("the reply was lost")
        return reply


class NoTwin(WrappedCommands):
    """Refused writes look like any other failure, so that no check is tried without a write."""

    async def execute(self, *arguments: Argument, **how: Any) -> Any:
        try:
            return await super().execute(*arguments, **how)
        except RedisError as error:
            if str(error).startswith("NOREPLICAS"):
                raise RedisError("refused") from error
            raise


def edited(old: str, new: str) -> Wrap:
    """Scripts in which a text is replaced, wherever it occurs."""

    class Edited(WrappedCommands):
        async def execute(self, *arguments: Argument, **how: Any) -> Any:
            if arguments[0] == "EVALSHA":
                raise NoScriptError  # so that the source comes
            if arguments[0] == "EVAL":
                arguments = ("EVAL", str(arguments[1]).replace(old, new), *arguments[2:])
            return await super().execute(*arguments, **how)

    return Edited
