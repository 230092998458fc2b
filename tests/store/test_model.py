"""The store against a model of the contract, in any order of operations and any passing of time."""

import os

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from sesiones.sesion import (
    BadDates,
    Immutable,
    Login,
    Refusal,
    Sesion,
)
from tests.harness.stores import store_on
from tests.store.model import MAX, PER_USER, USERS, Holding

EXAMPLES = max(1, int(50 * float(os.environ.get("SESIONES_TEST_ROUNDS", "1"))))
STEPS = 50


class Model(Holding):
    """Every rule does the same to the store and to ``held``, and compares the answers."""

    @initialize(
        touch=st.sampled_from([0, 1, 3, 60]),
        idle=st.sampled_from([2, 5, MAX]),
        at_limit=st.sampled_from(["end", "refuse"]),
        keep=st.sampled_from([0, 0, 3, 600]),
    )
    def begin(self, touch: int, idle: int, at_limit: str, keep: int) -> None:
        self.touch, self.idle, self.at_limit = touch, idle, at_limit
        self.keep = keep
        self.store = store_on(
            self.fake,
            idle_seconds=idle,
            max_seconds=MAX,
            touch_seconds=touch,
            max_per_user=PER_USER,
            at_limit=at_limit,
            why_seconds=keep,
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


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    phases=set(Phase) - {Phase.explain},  # it takes minutes
    report_multiple_bugs=False,
)
TestModel.pytestmark = [  # type: ignore[attr-defined]
    pytest.mark.race,
    pytest.mark.timeout(240),  # a busy machine
]
