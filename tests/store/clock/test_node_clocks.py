"""The clocks of the nodes of the service do not matter: all time is Redis's."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sesiones.redis_client import Argument
from sesiones.sesion import Sesion
from sesiones.store import SessionStore, scripts
from sesiones.testing import START, Clock, ClockedRedis
from tests.harness.records import IDLE, MAX
from tests.harness.stores import store_on

pytestmark = pytest.mark.anyio


class WallClock:
    """Stands in for this machine's clock. ``ahead``: by how many seconds it is wrong."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead = 0
        patch.setattr(time, "time", lambda: START + self.ahead)
        patch.setattr(time, "time_ns", lambda: (START + self.ahead) * 10**9)


async def life(clock: Clock, wall: WallClock, *clocks: int) -> list[Any]:
    """What two nodes answer about the sessions of one user, who uses them in turn; ``clocks``: by
    how many seconds each node's clock is wrong."""
    clock.now = START
    fake, answers = ClockedRedis(), list[Any]()
    here, there = ((store_on(fake), ahead) for ahead in clocks)

    async def ask(node: tuple[SessionStore, int], operation: str, *arguments: Any) -> Any:
        store, wall.ahead = node
        answer = await getattr(store, operation)(*arguments)
        random = isinstance(answer, Sesion)
        answers.append(answer._replace(Token_Sesion="") if random else answer)
        return answer

    first = await ask(here, "create", 7, "móvil")
    second = await ask(there, "create", 7, "móvil")
    third = await ask(here, "create", 7, "móvil")
    for node in here, there:
        await ask(node, "find", first.Token_Sesion)
    clock.now += 1
    first = await ask(there, "find", first.Token_Sesion)  # it slides
    used = first.Ultima_Actividad
    for node, dates in (
        (here, {}),
        (there, {"Ultima_Actividad": used + 300, "Fecha_Expiracion": used + 304}),
        (here, {"Ultima_Actividad": used - 300, "Fecha_Expiracion": used - 297}),
        (there, {"Fecha_Expiracion": used}),
        (here, {"Fecha_Expiracion": START + MAX + 1}),
        (there, {"Fecha_Expiracion": START + MAX}),
    ):
        await ask(node, "update", first._replace(**dates))
    token = first.Token_Sesion
    clock.now = START + IDLE - 1
    await ask(here, "end", token, second.Token_Sesion)  # in its last second
    await ask(there, "find", second.Token_Sesion)
    clock.now += 1
    await ask(there, "end", token, third.Token_Sesion)  # it has just expired
    for node in here, there:
        await ask(node, "find", third.Token_Sesion)
    fourth = await ask(there, "create", 7, "móvil")
    await ask(here, "update", fourth._replace(Estado_Sesion=0))
    await ask(there, "find", fourth.Token_Sesion)
    await ask(there, "update", fourth)
    await ask(here, "find", fourth.Token_Sesion)
    await ask(here, "end_all", token, token)
    await ask(there, "find", token)
    await ask(here, "find", fourth.Token_Sesion)
    await ask(there, "update", first)
    await fake.aclose()
    return answers


WRONG_CLOCKS = [(300, -300), (-300, 300)]


@pytest.mark.parametrize("clocks", WRONG_CLOCKS)
async def test_answers_do_not_depend_on_the_clocks_of_the_nodes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, clocks: tuple[int, int]
) -> None:
    wall = WallClock(monkeypatch)
    right = await life(clock, wall, 0, 0)
    assert await life(clock, wall, *clocks) == right
    kinds = [type(answer).__name__ for answer in right]
    assert Counter(kinds) == {"Sesion": 14, "BadDates": 2, "NoneType": 7, "int": 3}


@pytest.mark.parametrize("clocks", WRONG_CLOCKS)
async def test_node_that_creates_by_its_own_clock_answers_otherwise(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, clocks: tuple[int, int]
) -> None:
    wall = WallClock(monkeypatch)
    right = await life(clock, wall, 0, 0)
    create = scripts.CREATE.source
    now = "local now = tonumber(time[1])"
    assert now in create
    really = ClockedRedis.execute

    async def naive(self: ClockedRedis, *arguments: Argument, **how: Any) -> Any:
        own = create.replace(now, f"{now} + {int(time.time()) - START}", 1)
        changed = [own if argument == create else argument for argument in arguments]
        return await really(self, *changed, **how)

    monkeypatch.setattr(ClockedRedis, "execute", naive)
    assert await life(clock, wall, *clocks) != right


def test_only_the_cli_the_logs_and_the_process_metrics_read_the_clock_of_the_node() -> None:
    package = Path(scripts.__file__).parents[1]
    reads = re.compile(r"\btime\.time|\btime_ns\b|\bdatetime\b|\b(gm|local)time\b")
    modules = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if reads.search(path.read_text("utf-8"))
    }
    others = {name for name in modules if not name.startswith("cli/")}
    assert others == {"logs.py", "http/process.py"}
