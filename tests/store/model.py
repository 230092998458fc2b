"""What the store should hold, after anything that was done to it: the contract, in memory."""

import asyncio
import itertools
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from sesiones import tokens
from sesiones.sesion import LimitReached, Login, Refusal, Sesion, UserSession
from sesiones.store import SessionStore
from sesiones.testing import Clock, ClockedRedis
from tests.harness.records import keys

T = TypeVar("T")

# Small enough that limits are met all the time.
MAX = 12
PER_USER = 3
USERS = (7, 2061, 8)  # the first two share a bucket


@dataclass
class Held:
    """What Redis should hold of a session."""

    sesion: Sesion
    ventana: int
    life: int | None = None
    """Its own maximum life."""

    @property
    def last(self) -> int:
        """The latest expiry that it may have."""
        return self.sesion.Fecha_Inicio + (self.life or MAX)

    def fields(self) -> dict[bytes, bytes]:
        sesion = self.sesion
        numbers = (
            *(sesion.Fecha_Inicio, sesion.Ultima_Actividad - sesion.Fecha_Inicio, self.ventana),
            *(sesion.Estado_Sesion, sesion.ID_Sesion, sesion.ID_Usuario),
        )
        fields = {b"1": f"{' '.join(map(str, numbers))}:{sesion.Dispositivo}".encode()}
        return fields if self.life is None else fields | {b"2": b"%d" % self.life}


class Holding(RuleBasedStateMachine):
    """The store, ``held``, which it should agree with, and what a rule needs to tell that."""

    store: SessionStore
    touch: int
    idle: int
    at_limit: str
    keep: int

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.clock.install(self.patch)
        # Hypothesis repeats what fails, so nothing may be random: tokens count.
        secret = (f"{number:043}" for number in itertools.count())
        self.patch.setattr(secrets, "token_urlsafe", lambda _: next(secret))
        self.runner = asyncio.Runner()
        self.fake = ClockedRedis()
        self.known = [tokens.make(ID_Usuario) for ID_Usuario in USERS]
        """Every token that there was, and some that there were not."""
        self.held: dict[str, Held] = {}
        self.made: dict[str, int] = {}
        """Sessions ever made, by bucket."""

    def teardown(self) -> None:
        self.runner.run(self.fake.aclose())
        self.runner.close()
        self.patch.undo()

    def run(self, operation: Coroutine[None, None, T]) -> T:
        return self.runner.run(operation)

    @property
    def now(self) -> int:
        return int(self.clock.now)

    def live(self, token: str) -> Held | None:
        held = self.held.get(token)
        return held if held is not None and self.now < held.sesion.Fecha_Expiracion else None

    def active(self, token: str) -> Held | None:
        held = self.live(token)
        return held if held is not None and held.sesion.Estado_Sesion == 1 else None

    def live_ones(self) -> list[str]:
        return [token for token in self.held if self.live(token)]

    def live_of(self, ID_Usuario: int) -> list[str]:
        """The tokens of a user's live sessions, the one that expires first at the front."""
        return sorted(
            (t for t in self.live_ones() if self.held[t].sesion.ID_Usuario == ID_Usuario),
            key=lambda token: (self.held[token].sesion.Fecha_Expiracion, tokens.digest(token)),
        )

    def pick(self, data: st.DataObject) -> str:
        """A token: a live session's more often than not."""
        live = st.sampled_from(self.live_ones())
        return data.draw(live | live | st.sampled_from(self.known))

    def log_in(self, ID_Usuario: int, Dispositivo: str, login: Login) -> None:
        named = {
            token
            for token in self.live_of(ID_Usuario)
            if login.Cerrar_Otras or self.held[token].sesion.ID_Sesion == login.Sustituye
        }
        if login.Token_Anterior is not None and self.live(login.Token_Anterior):
            named.add(login.Token_Anterior)
        left = [token for token in self.live_of(ID_Usuario) if token not in named]
        surplus = max(0, len(left) + 1 - (login.Max_Sesiones or PER_USER))
        if surplus and self.at_limit == "refuse":
            with pytest.raises(LimitReached) as refused:
                self.run(self.store.create(ID_Usuario, Dispositivo, login))
            assert refused.value.sessions == self.list_of(ID_Usuario)
            return
        sesion = self.run(self.store.create(ID_Usuario, Dispositivo, login))
        for token in [*named, *left[:surplus]]:
            del self.held[token]
        window = min(self.idle, login.Vida_Maxima or MAX)
        if login.Ventana is not None:
            window = login.Ventana
        bucket = tokens.user_bucket(ID_Usuario)
        self.made[bucket] = self.made.get(bucket, 0) + 1
        assert sesion == Sesion(
            ID_Sesion=self.made[bucket] * 4096 + tokens.bucket_number(bucket),
            ID_Usuario=ID_Usuario,
            Token_Sesion=sesion.Token_Sesion,
            Fecha_Inicio=self.now,
            Fecha_Expiracion=self.now + window,
            Estado_Sesion=1,
            Ultima_Actividad=self.now,
            Dispositivo=Dispositivo,
        )
        assert sesion.Token_Sesion not in self.held
        self.held[sesion.Token_Sesion] = Held(sesion, window, login.Vida_Maxima)
        self.known.append(sesion.Token_Sesion)

    def list_of(self, ID_Usuario: int, caller: str | None = None) -> list[UserSession]:
        """The user's list."""
        listed = []
        for token in self.live_of(ID_Usuario):
            fields = self.held[token].sesion._asdict()
            fingerprint = tokens.fingerprint(fields.pop("Token_Sesion"))
            actual = None if caller is None else token == caller
            listed.append(UserSession(**fields, fingerprint=fingerprint, Actual=actual))
        return sorted(listed, key=lambda each: (-each.Ultima_Actividad, -each.ID_Sesion))

    def use(self, token: str) -> Held | None:
        """The live and active session of a token, slid when due."""
        held = self.active(token)
        if held is None:
            return None
        age = self.now - held.sesion.Ultima_Actividad
        if age >= min(self.touch, max(1, held.ventana // 2)):
            held.sesion = held.sesion._replace(
                Ultima_Actividad=self.now,
                Fecha_Expiracion=max(
                    held.sesion.Fecha_Expiracion, min(self.now + held.ventana, held.last)
                ),
            )
        return held

    def refusal(self, caller: str, designated: str) -> set[int | Refusal] | None:
        """The answers that the store may give instead of ending anything."""
        mine, theirs = self.active(caller), self.live(designated)
        foreign = (
            theirs is not None and tokens.bucket(caller) != tokens.bucket(designated)
        ) or bool(mine and theirs and mine.sesion.ID_Usuario != theirs.sesion.ID_Usuario)
        if mine is None:
            # The endpoint has checked the caller; what the store says of a dead caller and
            # another bucket's session is only that nothing ended.
            if tokens.bucket(caller) != tokens.bucket(designated):
                return {Refusal.UNAUTHENTICATED, Refusal.FORBIDDEN if foreign else 0}
            return {Refusal.UNAUTHENTICATED}
        return {Refusal.FORBIDDEN} if foreign else None

    @invariant()
    def redis_holds_the_model(self) -> None:
        redis = self.fake.redis
        live = {tokens.digest(token): held for token in self.held if (held := self.live(token))}
        seen = set()
        indexed = {}
        names = keys(redis)
        with redis.pipeline(transaction=False) as pipeline:  # one call instead of a dozen
            for name in names:
                pipeline.expiretime(name)
                match name.partition("}:")[2][0]:
                    case "n":
                        pipeline.get(name)
                    case "h":
                        pipeline.hgetall(name)
                    case "u" | "w":
                        pipeline.zrange(name, 0, -1, withscores=True)
                    case "e":
                        pipeline.hgetall(name)
            replies: list[Any] = pipeline.execute()
        for name, expiry, value in zip(names, replies[::2], replies[1::2], strict=True):
            prefix, bucket, kind, *rest = name.replace("{", "").replace("}", "").split(":")
            assert prefix == "sesiones"
            if kind == "n":
                assert (expiry, value) == (-1, b"%d" % self.made[bucket])
            elif kind == "h":
                assert expiry >= self.now  # so it has one
                if expiry > self.now:
                    held = live[rest[0]]
                    seen.add(rest[0])
                    assert held.fields() == value
                    assert held.sesion.Fecha_Expiracion == expiry
                    assert bucket == tokens.user_bucket(held.sesion.ID_Usuario)
            elif kind == "e":
                assert expiry >= self.now
            elif kind == "w":
                assert self.now <= expiry <= self.now + self.keep
                for trace, score in value:
                    assert trace.partition(b" ")[0].decode() not in live
                    assert score <= self.now
            else:
                assert kind == "u"
                for digest, score in value:
                    assert score <= expiry
                    if score > self.now:
                        indexed[digest.decode()] = (int(rest[0]), int(score))
        assert seen == live.keys()
        assert indexed == {
            digest: (held.sesion.ID_Usuario, held.sesion.Fecha_Expiracion)
            for digest, held in live.items()
        }

    @invariant()
    def ids_are_unique(self) -> None:
        ids = [held.sesion.ID_Sesion for held in self.held.values()]
        assert len(ids) == len(set(ids))
