"""What the commands that end sessions say when a reply of Redis is lost."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.cli.exits import Exit
from sesiones.sesion import StoreUnavailable
from sesiones.store.runner import ScriptRunner
from tests.harness.command_line import CommandLine
from tests.harness.redis_server import RedisServer
from tests.harness.relay import Relay

PLACE = "(prefix sesiones, database 0)"
MISSING = ", because Redis's replies about some are missing"
NOT_KNOWN = "whether a session has ended is not known: list them, or repeat the command"


class Losses:
    """A filter of a relay: it loses the given replies to scripts that end sessions, the first one
    being 1, and their connections."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self._replies = 0

    def __call__(self, piece: bytes) -> bytes | None:
        self._replies += b"command line" in piece  # the actor, which such a reply begins with
        return None if b"command line" in piece and self._replies in self.lost else piece


@pytest.fixture
def losses() -> Losses:
    return Losses()


@pytest.fixture
def relayed(server: RedisServer, sesiones: CommandLine, losses: Losses) -> Iterator[CommandLine]:
    with Relay(server.socket, lambda: losses) as relay:
        yield sesiones.at(f"redis://127.0.0.1:{relay.port}")


def range_of(text: str) -> tuple[int, int]:
    """Of "3 to 7 sessions ended"."""
    found = re.search(r"\b(\d+) to (\d+) sessions? ended ", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def test_end_all_whose_reply_is_lost_says_how_many_may_have_ended(
    relayed: CommandLine, own: "Redis", losses: Losses
) -> None:
    relayed.create(7, 7, 7)
    losses.lost = {1}
    code, out, errors = relayed("end-all", "--yes")
    told = f"0 to 3 sessions ended {PLACE}{MISSING}"
    assert (code, out) == (Exit.OK, f"{told}\n")
    assert errors.splitlines()[-1].endswith(f": {told}: done")
    assert not own.keys("*:h:*")
    assert relayed("end-all", "--yes")[1] == f"0 sessions ended {PLACE}\n"


@pytest.mark.parametrize("lost", [{1}, {2}])
def test_end_all_of_many_buckets_counts_what_it_can(
    relayed: CommandLine, own: "Redis", losses: Losses, lost: set[int]
) -> None:
    relayed.create(*range(100))
    losses.lost = lost
    code, out, errors = relayed("end-all", "--yes")
    assert code == Exit.OK
    least, most = range_of(out)
    assert least < 100 <= most <= 100
    assert errors.count(": operator by command line\n") == least
    assert not own.keys("*:h:*")


def test_end_all_whose_replies_are_all_lost_fails_and_says_what_may_have_ended(
    relayed: CommandLine, own: "Redis", losses: Losses
) -> None:
    relayed.create(7, 7, 7)
    losses.lost = {1, 2}
    code, out, errors = relayed("end-all", "--yes")
    assert (code, out) == (Exit.UNAVAILABLE, "")
    *_, audit, last = errors.splitlines()
    assert f": 0 to 3 sessions ended {PLACE}{MISSING}: failed: " in audit
    assert last.startswith("sesiones: ")
    assert not own.keys("*:h:*")


def test_lost_reply_is_in_the_json_of_end_all(
    relayed: CommandLine, own: "Redis", losses: Losses
) -> None:
    relayed.create(7, 7)
    losses.lost = {1}
    code, out, errors = relayed("end-all", "--yes", "--json", "--log-format", "json")
    assert code == Exit.OK
    assert orjson.loads(out) == {"Sesiones_Eliminadas": 0, "Sesiones_Eliminadas_Max": 2}
    audit = orjson.loads(errors.splitlines()[-1])
    assert (audit["ended"], audit["ended_at_most"], audit["outcome"]) == (0, 2, "done")


def test_try_that_did_not_reach_redis_leaves_the_count_exact(
    sesiones: CommandLine, own: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Redis has closed the connection: the second try ends what the first one has not."""
    sesiones.create(7, 7, 7)
    write, calls = ScriptRunner.write, 0

    async def fails_once(runner: ScriptRunner, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreUnavailable("lost") from RedisConnectionError("lost")
        return await write(runner, *arguments, **options)

    monkeypatch.setattr(ScriptRunner, "write", fails_once)
    code, out, _ = sesiones("end-all", "--yes")
    assert (code, out) == (Exit.OK, f"3 sessions ended {PLACE}\n")


def test_late_reply_leaves_the_count_exact(
    sesiones: CommandLine, own: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try's reply, which comes when its time is over and the second try has begun."""
    sesiones.create(7, 7, 7)
    write = ScriptRunner.write
    late: list[tuple[Callable[[Any], Any], Any]] = []

    async def is_late_once(
        runner: ScriptRunner, *arguments: Any, on_reply: Callable[[Any], Any], **options: Any
    ) -> Any:
        if late:
            deliver, reply = late[0]
            deliver(reply)
            return await write(runner, *arguments, on_reply=on_reply, **options)
        await write(
            runner, *arguments, on_reply=lambda reply: late.append((on_reply, reply)), **options
        )
        raise StoreUnavailable("no answer") from TimeoutError()

    monkeypatch.setattr(ScriptRunner, "write", is_late_once)
    code, out, _ = sesiones("end-all", "--yes")
    assert (code, out) == (Exit.OK, f"3 sessions ended {PLACE}\n")


def test_end_all_that_redis_refuses_has_ended_none(sesiones: CommandLine, own: "Redis") -> None:
    sesiones.create(7, 7, 7)
    own.acl_setuser("least", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-del"])
    try:
        refused = sesiones.at(sesiones.url.replace("unix://", "unix://least:x@"))
        code, _, errors = refused("end-all", "--yes")
        assert code == Exit.UNAVAILABLE
        assert f": 0 sessions ended {PLACE}: failed: " in errors
        code, _, errors = refused.users("7", "--end-all")
        assert code == Exit.UNAVAILABLE
        assert NOT_KNOWN not in errors
    finally:
        own.acl_deluser("least")


@pytest.mark.parametrize("one", [False, True])
def test_users_whose_reply_is_lost_says_that_sessions_may_have_ended(
    relayed: CommandLine, own: "Redis", losses: Losses, one: bool
) -> None:
    made = relayed.create(7)
    losses.lost = {1}
    words = ("--end", str(made[0].ID_Sesion)) if one else ("--end-all",)
    code, out, errors = relayed.users("7", *words)
    assert (code, out) == (Exit.UNAVAILABLE, "")
    assert re.fullmatch(rf"sesiones: [^\n]+; {NOT_KNOWN}\n", errors)
    assert not own.keys("*:h:*")
    code, out, _ = relayed.users("7", *words)
    assert (code, out) == (Exit.NO if one else Exit.OK, f"0 sessions ended {PLACE}\n")


def test_users_that_a_loading_redis_refuses_does_not_say_that_sessions_may_have_ended(
    sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_loading(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("loading") from BusyLoadingError("loading")

    monkeypatch.setattr(ScriptRunner, "write", is_loading)
    assert sesiones.users("7", "--end-all") == (Exit.UNAVAILABLE, "", "sesiones: loading\n")


@pytest.mark.parametrize("may_wait", [True, False])
def test_users_whose_ending_is_not_confirmed_knows_that_sessions_have_ended(
    sesiones: CommandLine, own: "Redis", monkeypatch: pytest.MonkeyPatch, may_wait: bool
) -> None:
    sesiones.create(7, 7)
    commands = ["+@all", "+wait" if may_wait else "-wait"]
    own.acl_setuser("waits", enabled=True, nopass=True, keys=["*"], commands=commands)
    monkeypatch.setenv("SESIONES_WAIT_REPLICAS", "1")
    try:
        unconfirmed = sesiones.at(sesiones.url.replace("unix://", "unix://waits:x@"))
        code, out, errors = unconfirmed.users("7", "--end-all")
    finally:
        own.acl_deluser("waits")
    assert (code, out) == (Exit.UNAVAILABLE, "")
    assert errors.count(": operator by command line\n") == 2
    assert NOT_KNOWN not in errors
