"""A store on simulated servers and a simulated clock, for test_check_calls.py: the servers say what
a test has them say to each call of checks."""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sesiones import tokens
from sesiones.metrics import CACHE_LOOKUPS, IN_FLIGHT, REDIS_SECONDS, cell
from sesiones.policy import SessionPolicy
from sesiones.redis_client.cluster import SLOT_OF_BUCKET
from sesiones.redis_client.single import Server
from sesiones.redis_client.subscription import Lease
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore, batching, checks, near_cache, runner
from tests.harness.fake_redis import TIMEOUT_SECONDS, FakeServer, Network
from tests.harness.virtual_loop import CLOCK, virtual

USERS = range(1, 5)
TOKENS = {user: tokens.make(user) for user in USERS}


def slot(token: str) -> int:
    return SLOT_OF_BUCKET[tokens.bucket(token)]


class Scene:
    """A store on servers that know TOKENS, and answer each check with the session of the user.
    ``reply``: what becomes of a server's reply to a batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, cache_seconds: int) -> None:
        for module in batching, checks, runner, near_cache:
            monkeypatch.setattr(module, "time", CLOCK)
        lease = Lease()
        lease.extend(math.inf)
        monkeypatch.setattr(Server, "subscribe", lambda *_: None)
        monkeypatch.setattr(Server, "lease", lambda *_: lease)
        self.network = Network(monkeypatch)
        self.server: FakeServer = self.network.nodes[0]
        self.reply: Callable[[FakeServer, Any], Any] = lambda _, reply: reply
        self.calls = 0
        for node in self.network.nodes:
            node.answer = partial(self._answer, node, node.answer)
        self.store = SessionStore(
            getattr(self.network, kind),
            SessionPolicy(),
            key_prefix="sesiones",
            timeout_seconds=TIMEOUT_SECONDS,
            cache_seconds=cache_seconds,
        )
        keys = self.store._keys
        self._records = {
            keys.session(token).encode(): b"1000 0 1800 1 %d %d:d" % (user, user)
            for user, token in TOKENS.items()
        }
        self.answers: list[tuple[int, Any]] = []
        """The user, and what its check was answered with."""

    def _answer(
        self, node: FakeServer, other: Callable[..., Any], command: list[bytes], asking: bool
    ) -> Any:
        if command[0] not in (b"EVALSHA", b"EVAL"):
            return other(command, asking)
        self.calls += 1
        keys = [word for word in command[3 + int(command[2]) :] if b":h:" in word]
        found = [each for key in keys for each in (self._records[key], 2_000_000_000)]
        return self.reply(node, [command[-1], [*found, 1_000_000_000, 0, []]])

    def ask(self, *users: int) -> None:
        submit = self.store.checker()
        for user in users:
            submit(TOKENS[user], partial(self._take, user))

    def _take(self, user: int, answer: Any) -> None:
        self.answers.append((user, answer))

    async def open(self) -> None:
        self.ask(*TOKENS)
        await asyncio.sleep(0.05)
        self.expect(dict.fromkeys(TOKENS, 1))
        self.calls = 0

    def expect(self, counts: dict[int, int]) -> None:
        """So many answers have come to the checks of each user, all with its own session."""
        for user, answer in self.answers:
            assert answer is not None
            assert answer.ID_Usuario == user, answer
        assert {user: sum(one == user for one, _ in self.answers) for user in counts} == counts
        self.answers.clear()

    def expect_unavailable(self, number: int) -> None:
        assert [type(answer) for _, answer in self.answers] == [StoreUnavailable] * number
        self.answers.clear()

    def in_flight(self) -> float:
        return self.store.metrics._cells[cell(IN_FLIGHT, "check")]

    def misses(self) -> float:
        return self.store.metrics._cells[cell(CACHE_LOOKUPS, "miss")]

    def replies(self) -> float:
        first = cell(REDIS_SECONDS)
        return sum(self.store.metrics._cells[first : first + REDIS_SECONDS.width - 1])


def on_scene(
    test: Callable[[Scene], Any], kind: str = "server", cache_seconds: int = 0
) -> Callable[[], None]:
    """A test on the clock of the simulated servers. ``kind``: ``server`` or ``cluster``."""

    async def work() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            scene = Scene(monkeypatch, kind, cache_seconds)
            await scene.open()
            await test(scene)
            assert scene.in_flight() == 0
            await scene.store.aclose()
            await asyncio.sleep(0)

    work.__name__, work.__doc__, work.__module__ = test.__name__, test.__doc__, test.__module__
    return virtual(work)
