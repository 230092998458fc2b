"""Logins, lists and endings of all sessions but one, forced in races on a real server.

Each scenario is also run with a naive variant, and has to catch it: so the tests can fail.
SESIONES_TEST_ROUNDS multiplies the rounds, for longer runs.
"""

import asyncio
from typing import Any

import pytest
from redis import Redis

from sesiones.sesion import LimitReached, Login, Sesion
from tests.harness.records import index, indexed
from tests.harness.redis_server import RedisServer
from tests.harness.stores import Opener
from tests.store.ended import exists
from tests.store.login_naive import (
    ClosesTheOthersFirst,
    ClosesTheOthersLast,
    DeactivatesThePrevious,
    EndsOthersOfAList,
    LimitsInSteps,
    ListsTheIndex,
    SubstitutesInSteps,
)
from tests.store.login_scenarios import LOGIN_SCENARIOS, LOGINS
from tests.store.naive import edited
from tests.store.races import PER_USER, ROUNDS, run

pytestmark = pytest.mark.anyio


@pytest.mark.race
@pytest.mark.parametrize("scenario", LOGIN_SCENARIOS)
async def test_scenario_holds_in_races(server: RedisServer, scenario: str) -> None:
    assert await run(server, LOGIN_SCENARIOS[scenario]) == []


@pytest.mark.parametrize(
    ("scenario", "variant", "caught"),
    [
        ("list races expiry", ListsTheIndex, "a list has a dead session"),
        ("logoutOthers races create", EndsOthersOfAList, "lives outside the index"),
        ("Cerrar_Otras races Cerrar_Otras", ClosesTheOthersFirst, "2 sessions are left"),
        ("Cerrar_Otras races Cerrar_Otras", ClosesTheOthersLast, "0 sessions are left"),
        ("logins storm a limit", LimitsInSteps, "are left, of 4"),
        ("Token_Anterior races logout", DeactivatesThePrevious, "has no expiry"),
        ("a login is tried again", edited("if existing then", "if false then"), "try ended"),
        ("Sustituye races logout", SubstitutesInSteps, "ended that was not picked"),
    ],
)
async def test_naive_variant_is_caught(
    server: RedisServer, scenario: str, variant: Any, caught: str
) -> None:
    """A variant is of the store, or of its commands."""
    wrong = await run(server, LOGIN_SCENARIOS[scenario], variant, until=caught)
    assert any(caught in what for what in wrong), wrong


@pytest.mark.race
async def test_storm_of_logins_that_are_refused_at_the_limit_makes_as_many_as_allowed(
    redis: Redis, open_more: Opener
) -> None:
    stores = [open_more(at_limit="refuse", max_per_user=PER_USER) for _ in range(4)]
    for user in range(max(1, ROUNDS // 20)):
        answers = await asyncio.gather(
            *(stores[i % 4].create(user, "d") for i in range(LOGINS)), return_exceptions=True
        )
        made = [answer for answer in answers if isinstance(answer, Sesion)]
        assert len(made) == PER_USER
        assert index(redis, user) == indexed(*made)
        refused = [answer for answer in answers if isinstance(answer, LimitReached)]
        assert len(refused) == LOGINS - PER_USER
        numbers = {sesion.ID_Sesion for sesion in made}
        for answer in refused:
            assert {each.ID_Sesion for each in answer.sessions} == numbers


@pytest.mark.race
async def test_login_that_is_refused_in_a_storm_ends_no_other_users_session(
    redis: Redis, open_more: Opener
) -> None:
    """Each login brings the token of a session of another user, in another hash slot."""
    stores = [open_more(at_limit="refuse", max_per_user=PER_USER) for _ in range(4)]
    for user in range(max(1, ROUNDS // 33)):
        owners = range(100_000 + 100 * user, 100_000 + 100 * user + 3 * PER_USER)
        others = [await stores[0].create(owner, "d") for owner in owners]
        logins = (Login(Token_Anterior=other.Token_Sesion) for other in others)
        answers = await asyncio.gather(
            *(stores[i % 4].create(user, "d", login) for i, login in enumerate(logins)),
            return_exceptions=True,
        )
        made = [isinstance(answer, Sesion) for answer in answers]
        assert sum(made) == PER_USER
        assert exists(redis, *others) == [not was_made for was_made in made]
