"""Naive variants of the store's logins and lists, which do what other session stores do: the
scenarios have to catch each of them."""

from typing import Any

from sesiones import tokens
from sesiones.sesion import NO_LOGIN, Login, Refusal, Sesion, UserSession
from tests.harness.records import base, counter_key, digest, index_key, session_key
from tests.store.naive import Naive
from tests.store.races import PER_USER


class NaiveLogin(Naive):
    """Reads the user's sessions, ends some, and makes the new one: in steps."""

    async def members(self, user: int) -> list[str]:
        """Digests, the one that expires first at the front."""
        return [each.decode() for each in await self.command("ZRANGE", index_key(user), 0, -1)]

    async def drop(self, user: int, *digests: str) -> int:
        for each in digests:
            await self.command("ZREM", index_key(user), each)
        keys = [f"{base(user)}h:{each}" for each in digests]
        return int(await self.command("DEL", *keys)) if keys else 0

    async def make(self, user: int, device: str) -> Sesion:
        return await super().create(user, device, Login(Max_Sesiones=PER_USER))


class ListsTheIndex(Naive):
    """What the index and the keys have is listed."""

    async def list_sessions(self, caller: str) -> list[UserSession] | None:
        fields = await self.record(caller)
        if fields is None:
            return None
        user = int(fields[5])
        listed = []
        for member in await self.command("ZRANGE", index_key(user), 0, -1):
            text = await self.command("HGET", f"{base(user)}h:{member.decode()}", "1")
            if text is not None:
                number = int(text.split(b" ")[4])
                listed.append(UserSession(number, user, "", 0, 0, 1, 0, "d"))
        return listed


class EndsOthersOfAList(NaiveLogin):
    """Reads the index, deletes what was in it, and writes an index of the caller alone."""

    async def end_others(self, caller: str) -> int | Refusal:
        fields = await self.record(caller)
        if fields is None:
            return Refusal.UNAUTHENTICATED
        user, key = int(fields[5]), session_key(caller)
        others = [each for each in await self.members(user) if each != digest(caller)]
        keys = [f"{base(user)}h:{each}" for each in others]
        ended = int(await self.command("DEL", *keys)) if keys else 0
        expiry = await self.command("EXPIRETIME", key)
        await self.command("DEL", index_key(user))
        await self.command("ZADD", index_key(user), expiry, digest(caller))
        await self.command("EXPIREAT", index_key(user), expiry)
        return ended


class ClosesTheOthersFirst(NaiveLogin):
    """Ends what is there, and then makes the new session."""

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        if login.Cerrar_Otras:
            await self.drop(ID_Usuario, *await self.members(ID_Usuario))
        return await self.make(ID_Usuario, Dispositivo)


class ClosesTheOthersLast(NaiveLogin):
    """Makes the new session, and then ends the others."""

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        made = await self.make(ID_Usuario, Dispositivo)
        if login.Cerrar_Otras:
            others = await self.members(ID_Usuario)
            await self.drop(
                ID_Usuario, *(each for each in others if each != digest(made.Token_Sesion))
            )
        return made


class LimitsInSteps(NaiveLogin):
    """Counts, ends what is too much, and makes the new session."""

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        members = await self.members(ID_Usuario)
        await self.drop(ID_Usuario, *members[: len(members) + 1 - PER_USER])
        token = tokens.make(ID_Usuario)
        key, index = session_key(token), index_key(ID_Usuario)
        now = int((await self.command("TIME"))[0])
        number = await self.command("INCR", counter_key(ID_Usuario))
        text = f"{now} 0 1800 1 {number} {ID_Usuario}:{Dispositivo}"
        steps: list[Any] = [("HSET", key, "1", text), ("EXPIREAT", key, now + 1800)]
        steps += [("ZADD", index, now + 1800, digest(token)), ("EXPIREAT", index, now + 1800)]
        for step in steps:
            await self.command(*step)
        return Sesion(number, ID_Usuario, token, now, now + 1800, 1, now, Dispositivo)


class DeactivatesThePrevious(NaiveLogin):
    """Sees that the old session is there, makes the new one, and writes the old one's state."""

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        previous = login.Token_Anterior
        fields = await self.record(previous) if previous else None
        made = await self.make(ID_Usuario, Dispositivo)
        if previous and fields is not None:
            numbers = " ".join([*fields[:3], "0", *fields[4:6]])
            await self.command("HSET", session_key(previous), "1", f"{numbers}:{fields[6]}")
        return made


class SubstitutesInSteps(NaiveLogin):
    """Counts the sessions, looks for the picked one, and lets the limit end another where it does
    not find it."""

    async def create(self, ID_Usuario: int, Dispositivo: str, login: Login = NO_LOGIN) -> Sesion:
        members = await self.members(ID_Usuario)
        surplus = len(members) + 1 - (login.Max_Sesiones or PER_USER)
        picked = []
        for each in members if login.Sustituye else []:
            text = await self.command("HGET", f"{base(ID_Usuario)}h:{each}", "1")
            if text is not None and int(text.split(b" ")[4]) == login.Sustituye:
                picked.append(each)
        if not picked and surplus > 0:
            picked = members[:surplus]
        await self.drop(ID_Usuario, *picked)
        return await self.make(ID_Usuario, Dispositivo)
