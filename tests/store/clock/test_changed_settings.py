"""What another time or limit in the settings does to sessions that exist."""

import pytest

from sesiones.sesion import BadDates
from sesiones.testing import START, Clock
from tests.harness.records import IDLE, MAX
from tests.harness.stores import Opener
from tests.store.clock.dates import with_dates

pytestmark = pytest.mark.anyio


async def test_lower_max_ends_older_sessions_at_their_expiry(
    clock: Clock, open_more: Opener
) -> None:
    """They do not end at once: their expiry stands, but it is slid no further
    (docs/settings.md)."""
    sesion = await open_more().create(7, "portátil")
    lowered = open_more(max_seconds=2000)
    clock.now += 1500
    slid = with_dates(sesion, 2000, 1500)  # not 1500 + IDLE
    assert await lowered.find(sesion.Token_Sesion) == slid
    clock.now = START + 1999
    assert await lowered.find(sesion.Token_Sesion) == with_dates(sesion, 2000, 1999)
    clock.now = START + 2000
    assert await lowered.find(sesion.Token_Sesion) is None


async def test_lower_max_leaves_at_most_a_window_to_a_session_beyond_it(
    clock: Clock, open_more: Opener
) -> None:
    store, lowered = open_more(), open_more(idle_seconds=50, max_seconds=100)
    token = (await store.create(7, "portátil")).Token_Sesion
    clock.now += 1000
    slid = await store.find(token)
    assert slid is not None
    assert slid.Fecha_Expiracion == START + 1000 + IDLE
    clock.now = START + 1000 + IDLE - 1
    used = await lowered.find(token)
    assert used is not None
    assert used.Fecha_Expiracion == slid.Fecha_Expiracion
    assert await lowered.update(with_dates(used, 1000 + IDLE + 1, 1000 + IDLE - 1)) == BadDates(
        "lifetime"
    )
    clock.now += 1
    assert await lowered.find(token) is None


async def test_higher_max_is_for_older_sessions_too(clock: Clock, open_more: Opener) -> None:
    sesion = await open_more(max_seconds=2000).create(7, "portátil")
    clock.now += 1500
    raised = open_more(max_seconds=MAX)
    assert await raised.find(sesion.Token_Sesion) == with_dates(sesion, 1500 + IDLE, 1500)


async def test_another_window_is_for_new_sessions_alone(clock: Clock, open_more: Opener) -> None:
    sesion = await open_more().create(7, "portátil")
    for idle in 60, 2 * IDLE:
        changed = open_more(idle_seconds=idle)
        clock.now += 100
        slid = await changed.find(sesion.Token_Sesion)
        assert slid is not None
        assert slid.Fecha_Expiracion == clock.now + IDLE
        assert (await changed.create(7, "tablet")).Fecha_Expiracion == clock.now + idle


async def test_another_touch_interval_is_for_older_sessions_too(
    clock: Clock, open_more: Opener
) -> None:
    sesion = await open_more(touch_seconds=60).create(7, "portátil")
    clock.now += 10
    assert await open_more(touch_seconds=60).find(sesion.Token_Sesion) == sesion
    slid = with_dates(sesion, 10 + IDLE, 10)
    assert await open_more(touch_seconds=1).find(sesion.Token_Sesion) == slid


async def test_lower_limit_ends_sessions_at_the_next_create(
    clock: Clock, open_more: Opener
) -> None:
    store, lowered = open_more(), open_more(max_per_user=2)
    made = []
    for device in "one", "two", "three", "four":
        made.append((await store.create(7, device)).Token_Sesion)
        clock.now += 1
    # Until then all of them work.
    assert [await lowered.find(token) is not None for token in made] == [True] * 4
    made.append((await lowered.create(7, "five")).Token_Sesion)
    assert [await lowered.find(token) is not None for token in made].count(True) == 2
    assert await lowered.find(made[-1]) is not None
