"""The store against a model of the contract, in any order of operations and any passing of time."""

import asyncio
import itertools
import os
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sesiones import tokens
from sesiones.sesion import (
    BadDates,
    Immutable,
    LimitReached,
    Login,
    Refusal,
    Sesion,
    UserSession,
)
from tests.harness.clocked_redis import Clock, ClockedRedis
from tests.harness.stores import store_on

T = TypeVar("T")

EXAMPLES = max(1, int(150 * float(os.environ.get("SESIONES_TEST_ROUNDS", "1"))))
STEPS = 50

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


class Model(RuleBasedStateMachine):
    """Every rule does the same to the store and to ``held``, and compares the answers."""

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

    @initialize(
        touch=st.sampled_from([0, 1, 3, 60]),
        idle=st.sampled_from([2, 5, MAX]),
        at_limit=st.sampled_from(["end", "refuse"]),
    )
    def begin(self, touch: int, idle: int, at_limit: str) -> None:
        self.touch, self.idle, self.at_limit = touch, idle, at_limit
        self.store = store_on(
            self.fake,
            idle_seconds=idle,
            max_seconds=MAX,
            touch_seconds=touch,
            max_per_user=PER_USER,
            at_limit=at_limit,
        )

    @precondition(lambda self: self.live_ones())
    @rule(data=st.data())
    def time_passes_to_an_expiry(self, data: st.DataObject) -> None:
        """The second at which a key is still there and its session is not."""
        known = self.pick(data)
        if held := self.live(known):
            self.clock.now = held.sesion.Fecha_Expiracion

    @rule(ID_Usuario=st.sampled_from(USERS), Dispositivo=st.sampled_from("aé🔑"))
    def create(self, ID_Usuario: int, Dispositivo: str) -> None:
        self.log_in(ID_Usuario, Dispositivo, Login())

    @rule(
        data=st.data(),
        ID_Usuario=st.sampled_from(USERS),
        life=st.none() | st.integers(1, 2 * MAX),
        Cerrar_Otras=st.sampled_from([0, 0, 1]),
        Max_Sesiones=st.none() | st.integers(1, PER_USER),
    )
    def login(
        self,
        data: st.DataObject,
        ID_Usuario: int,
        life: int | None,
        Cerrar_Otras: int,
        Max_Sesiones: int | None,
    ) -> None:
        theirs = [self.held[token].sesion.ID_Sesion for token in self.live_of(ID_Usuario)]
        every = [held.sesion.ID_Sesion for held in self.held.values()]
        previous = self.pick(data) if self.live_ones() else self.known[0]
        login = Login(
            Ventana=data.draw(st.none() | st.integers(1, life or MAX)),
            Vida_Maxima=life,
            Token_Anterior=data.draw(st.none() | st.just(previous)),
            Cerrar_Otras=Cerrar_Otras,
            Max_Sesiones=Max_Sesiones,
            Sustituye=data.draw(st.none() | st.sampled_from([*theirs, *every, 1])),
        )
        self.log_in(ID_Usuario, "l", login)

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

    @rule(data=st.data())
    @precondition(lambda self: self.live_ones())
    def lists(self, data: st.DataObject) -> None:
        caller = self.pick(data)
        listed = self.run(self.store.list_sessions(caller))
        held = self.use(caller)
        expected = None if held is None else self.list_of(held.sesion.ID_Usuario, caller)
        assert listed == expected
        for ID_Usuario in USERS:
            assert self.run(self.store.sessions(ID_Usuario)) == self.list_of(ID_Usuario)

    @rule(data=st.data())
    @precondition(lambda self: self.live_ones())
    def end_one(self, data: st.DataObject) -> None:
        """By the owner, then by the backend for any user."""
        caller, other = self.pick(data), self.held[data.draw(st.sampled_from(self.live_ones()))]
        number, owner = other.sesion.ID_Sesion, other.sesion.ID_Usuario
        ended = self.run(self.store.end_one(caller, number))
        mine = self.use(caller)
        if mine is None:
            assert ended is Refusal.UNAUTHENTICATED
        elif mine.sesion.ID_Usuario == owner:
            assert ended == 1
            del self.held[other.sesion.Token_Sesion]
        else:
            assert ended == 0
            ID_Usuario = data.draw(st.sampled_from(USERS))
            expected = 1 if ID_Usuario == owner else 0
            assert self.run(self.store.end_user(ID_Usuario, number)) == expected
            if expected:
                del self.held[other.sesion.Token_Sesion]

    @rule(data=st.data())
    @precondition(lambda self: len(self.live_ones()) > 2)
    def end_others(self, data: st.DataObject) -> None:
        caller = self.pick(data)
        ended = self.run(self.store.end_others(caller))
        held = self.use(caller)
        if held is None:
            assert ended is Refusal.UNAUTHENTICATED
            return
        others = [token for token in self.live_of(held.sesion.ID_Usuario) if token != caller]
        assert ended == len(others)
        for token in others:
            del self.held[token]

    @rule(ID_Usuario=st.sampled_from(USERS))
    @precondition(lambda self: len(self.live_ones()) > 4)
    def end_user(self, ID_Usuario: int) -> None:
        theirs = self.live_of(ID_Usuario)
        assert self.run(self.store.end_user(ID_Usuario)) == len(theirs)
        for token in theirs:
            del self.held[token]

    @rule(data=st.data())
    @precondition(lambda self: self.live_ones())
    def revoke(self, data: st.DataObject) -> None:
        token = self.pick(data)
        self.run(self.store.revoke(token))
        if self.live(token):
            del self.held[token]

    @precondition(lambda self: self.live_ones())
    @rule(data=st.data(), quarters=st.integers(0, 8))
    def check(self, data: st.DataObject, quarters: int) -> None:
        """After a while. The token is picked first: it may expire meanwhile."""
        known = self.pick(data)
        self.clock.now += quarters / 4
        found = self.run(self.store.find(known))
        held = self.use(known)
        if held is None:
            assert found is None
            return
        assert found == held.sesion

    @precondition(lambda self: self.live_ones())
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        """The law: a PUT of what self returned changes nothing."""
        known = self.pick(data)
        if held := self.live(known):
            assert self.run(self.store.update(held.sesion)) == held.sesion

    @precondition(lambda self: self.live_ones())
    @rule(
        data=st.data(),
        quarters=st.integers(0, 8),
        expiracion=st.none() | st.integers(-5, MAX + 5),
        actividad=st.integers(-MAX, MAX),
        Estado_Sesion=st.sampled_from([1, 1, 0]),
        Dispositivo=st.sampled_from("bñ"),
    )
    def put(
        self,
        data: st.DataObject,
        quarters: int,
        expiracion: int | None,
        actividad: int,
        Estado_Sesion: int,
        Dispositivo: str,
    ) -> None:
        """After a while. The dates from now; without an expiry, the stored one."""
        known = self.pick(data)
        self.clock.now += quarters / 4
        held = self.live(known)
        stored = held.sesion if held else Sesion(1, 7, known, self.now, self.now + 1, 1, 1, "d")
        given = stored._replace(
            Fecha_Expiracion=(
                stored.Fecha_Expiracion if expiracion is None else self.now + expiracion
            ),
            Estado_Sesion=Estado_Sesion,
            Ultima_Actividad=self.now + actividad,
            Dispositivo=Dispositivo,
        )
        updated = self.run(self.store.update(given))
        if held is None:
            assert updated is None
            return
        ventana, last = held.ventana, held.last
        result = given._replace(
            Ultima_Actividad=min(
                max(given.Ultima_Actividad, stored.Ultima_Actividad),
                max(stored.Ultima_Actividad, self.now),
            )
        )
        if given.Fecha_Expiracion != stored.Fecha_Expiracion:
            ventana = given.Fecha_Expiracion - given.Ultima_Actividad
            if ventana < 1:
                assert updated == BadDates("window")
                return
            if given.Fecha_Expiracion > last:
                assert updated == BadDates("lifetime")
                return
            result = result._replace(Fecha_Expiracion=min(result.Ultima_Actividad + ventana, last))
            if result.Fecha_Expiracion <= self.now:
                assert updated == BadDates("past")
                return
        assert updated == result
        held.sesion, held.ventana = result, ventana

    @precondition(lambda self: self.live_ones())
    @rule(data=st.data(), wrong=st.sets(st.integers(0, 2), min_size=1))
    def put_what_never_changes(self, data: st.DataObject, wrong: set[int]) -> None:
        known = self.pick(data)
        held = self.live(known)
        if held is None:
            return
        fields = [("ID_Sesion", "ID_Usuario", "Fecha_Inicio")[at] for at in sorted(wrong)]
        given = held.sesion._asdict()
        given |= {field: given[field] + 1 for field in fields}
        assert self.run(self.store.update(Sesion(**given))) == Immutable(tuple(fields))

    @precondition(lambda self: self.live_ones())
    @rule(data=st.data(), itself=st.booleans())
    def logout(self, data: st.DataObject, itself: bool) -> None:
        caller = self.pick(data)
        designated = caller if itself else self.pick(data)
        ended = self.run(self.store.end(caller, designated))
        if (refusal := self.refusal(caller, designated)) is not None:
            assert ended in refusal
        else:
            assert ended == (1 if self.live(designated) else 0)
            self.held.pop(designated, None)

    @precondition(lambda self: len(self.live_ones()) > 2)
    @rule(data=st.data())
    def logout_all(self, data: st.DataObject) -> None:
        caller, designated = self.pick(data), self.pick(data)
        ended = self.run(self.store.end_all(caller, designated))
        if (refusal := self.refusal(caller, designated)) is not None:
            assert ended in refusal
        else:
            theirs = self.live_of(self.held[caller].sesion.ID_Usuario)
            assert ended == len(theirs)
            for token in theirs:
                del self.held[token]

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
        for key in redis.scan_iter():
            assert isinstance(key, bytes)
            name = key.decode()
            prefix, bucket, kind, *rest = name.replace("{", "").replace("}", "").split(":")
            assert prefix == "sesiones"
            expiry = redis.expiretime(name)
            if kind == "n":
                assert (expiry, redis.get(name)) == (-1, b"%d" % self.made[bucket])
            elif kind == "h":
                assert expiry >= self.now  # so it has one
                if expiry > self.now:
                    held = live[rest[0]]
                    seen.add(rest[0])
                    assert held.fields() == redis.hgetall(name)
                    assert held.sesion.Fecha_Expiracion == expiry
                    assert bucket == tokens.user_bucket(held.sesion.ID_Usuario)
            else:
                assert kind == "u"
                entries: list[Any] = redis.zrange(name, 0, -1, withscores=True)
                for digest, score in entries:
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


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    phases=set(Phase) - {Phase.explain},  # it takes minutes
    report_multiple_bugs=False,
)
