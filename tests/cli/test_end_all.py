"""`sesiones end-all`: what it ends, what it leaves, and what it logs."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import orjson
import pytest
from redis import Redis

from sesiones.cli.exits import Exit
from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store.operators import OperatorTools
from tests.harness.command_line import CommandLine
from tests.harness.ports import free_port
from tests.harness.records import (
    NEIGHBOUR,
    age,
    counter_key,
    index_key,
    now,
    session_key,
    state,
    write_record,
)
from tests.harness.redis_server import RedisServer
from tests.harness.stores import open_store, replica_of

PLACE = "prefix sesiones, database 0"
MISSING = ", because Redis's replies about some are missing"
AUDIT = (
    r"\S+ \S+ INFO sesiones\.cli: end-all by \S.* on \S+, Redis user default: "
    r"{} ended \(prefix sesiones, database 0\): {}\n"
)


def live(sesiones: CommandLine, *made: Sesion) -> list[bool]:
    async def find() -> list[bool]:
        async with aclosing(open_store(sesiones.url)) as store:
            return [await store.find(sesion.Token_Sesion) is not None for sesion in made]

    return asyncio.run(find())


def test_without_yes_nothing_ends(sesiones: CommandLine, own: "Redis") -> None:
    made = sesiones.create(7, 7, 8)
    age(own, made[0], 600)
    before = state(own)
    moment = str(now(own) - 300)
    for words, count, which in (
        ([], 3, ""),
        (["--before", moment], 1, r" that began before 20\S+ \S+Z"),
    ):
        code, out, errors = sesiones("end-all", *words)
        assert (code, errors) == (0, "")
        plural = "" if count == 1 else "s"
        assert re.fullmatch(
            rf"{count} live session{plural}{which} \({PLACE}\)\. Nothing has ended: "
            r"--yes ends them\.\n",
            out,
        )
        assert sesiones("end-all", *words, "--json")[1] == f'{{"Sesiones":{count}}}\n'
    assert state(own) == before


def test_end_all_ends_every_session_and_leaves_the_counters(
    sesiones: CommandLine, own: "Redis"
) -> None:
    made = sesiones.create(7, 7, NEIGHBOUR, 8, *range(100, 140))
    write_record(own, session_key(made[0].Token_Sesion), estado=0)
    own.delete(index_key(8))
    counter = own.get(counter_key(7))
    own.set("anothers", "x")
    code, out, errors = sesiones("end-all", "--yes")
    assert (code, out) == (0, f"44 sessions ended ({PLACE})\n")
    ended = re.findall(
        r"ended session (\d+) of user \d+, ses_#[0-9a-f]{8}: operator by command line\n", errors
    )
    assert sorted(map(int, ended)) == sorted(sesion.ID_Sesion for sesion in made)
    assert re.fullmatch(AUDIT.format("44 sessions", "done"), errors.splitlines(keepends=True)[-1])
    assert not own.keys("*:h:*")
    assert not own.keys("*:u:*")
    assert own.get(counter_key(7)) == counter
    assert own.exists("anothers")
    (newer,) = sesiones.create(7)
    assert newer.ID_Sesion > made[0].ID_Sesion
    # It can be repeated.
    assert sesiones("end-all", "--yes", "--json")[:2] == (0, '{"Sesiones_Eliminadas":1}\n')
    assert sesiones("end-all", "--yes")[1] == f"0 sessions ended ({PLACE})\n"


def test_malformed_records_end_too(sesiones: CommandLine, own: "Redis") -> None:
    whole, malformed, _ = sesiones.create(7, 7, 8)
    key = session_key(malformed.Token_Sesion)
    write_record(own, key, estado=2)
    strange = session_key(whole.Token_Sesion)[:-22] + "A" * 22
    own.set(strange, "of another type")
    odd = session_key(whole.Token_Sesion)[:-1] + "é"
    own.set(odd, "no session's key")
    assert sesiones("end-all", "--before", str(now(own) + 9), "--yes")[1].startswith("2 sessions ")
    assert own.exists(key)  # nothing is known of when it began
    code, out, errors = sesiones("end-all", "--yes")
    assert (code, out) == (0, f"2 sessions ended ({PLACE})\n")
    assert "ended session None of user None" in errors
    assert not own.exists(key, strange)
    assert own.exists(odd)


@pytest.mark.parametrize("form", ["epoch", "Z", "+02:00", "fraction"])
def test_only_sessions_that_began_before_the_moment_end(
    sesiones: CommandLine, own: "Redis", form: str
) -> None:
    made = sesiones.create(7, 7, 7, 8)
    moment = now(own) - 300
    first = age(own, made[0], made[0].Fecha_Inicio - moment + 1)
    second = age(own, made[1], made[1].Fecha_Inicio - moment)
    assert (first.Fecha_Inicio, second.Fecha_Inicio) == (moment - 1, moment)
    text = {
        "epoch": str(moment),
        "Z": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment)),
        "+02:00": time.strftime("%Y-%m-%dT%H:%M:%S+02:00", time.gmtime(moment + 7200)),
        "fraction": time.strftime("%Y-%m-%dT%H:%M:%S.5Z", time.gmtime(moment - 1)),
    }[form]
    code, out, errors = sesiones("end-all", "--before", text, "--yes")
    day = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(moment))
    assert (code, out) == (0, f"1 session that began before {day} ended ({PLACE})\n")
    assert f" that began before {day} ended (" in errors
    assert live(sesiones, *made) == [False, True, True, True]
    assert sesiones.listed("7") == {made[1].ID_Sesion, made[2].ID_Sesion}


@pytest.mark.parametrize(
    "text",
    [
        *("", "yesterday", "2026-11-27T09:00:00", "2026-11-27", "09:00", "-1", "1.5"),
        *("2026-13-01T00:00:00Z", "1" * 13, "\u0667"),
    ],
)
def test_moment_without_a_time_zone_is_a_bad_argument(
    sesiones: CommandLine, own: "Redis", text: str
) -> None:
    sesiones.create(7)
    with pytest.raises(SystemExit) as raised:
        sesiones("end-all", f"--before={text}", "--yes")
    assert raised.value.code == Exit.USAGE
    assert own.keys("*:h:*")


def test_audit_line_is_an_object_in_json(
    sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sesiones.create(7)
    monkeypatch.setenv("SUDO_USER", "ana")
    errors = sesiones("end-all", "--before", "9999999999", "--yes", "--log-format", "json")[2]
    *_, line = map(orjson.loads, errors.splitlines())
    assert line["operator"].startswith("ana (as ")
    assert line["host"]
    assert {name: line[name] for name in ("event", "redis_user", "before", "ended", "outcome")} == {
        "event": "end-all",
        "redis_user": "default",
        "before": 9999999999,
        "ended": 1,
        "outcome": "done",
    }


def fails_at(number: int, monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """Do the action in the place of that call of a bucket's sessions."""
    calls, original = 0, OperatorTools._end_begun

    async def counting(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            await action()
        else:
            await original(*arguments)

    monkeypatch.setattr(OperatorTools, "_end_begun", counting)


def test_failure_is_in_the_audit_line_and_the_command_can_be_repeated(
    sesiones: CommandLine, own: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sesiones.create(*range(20))

    async def fail() -> None:
        raise StoreUnavailable("no such luck")

    with monkeypatch.context() as patch:
        fails_at(3, patch, fail)
        code, out, errors = sesiones("end-all", "--yes")
    assert (code, out) == (Exit.UNAVAILABLE, "")
    *_, audit, last = errors.splitlines(keepends=True)
    assert last == "sesiones: no such luck\n"
    count = len(made) - len(own.keys("*:h:*"))
    assert count > 0
    assert re.fullmatch(AUDIT.format(f"{count} sessions", "failed: no such luck"), audit)
    assert errors.count(": operator by command line\n") == count
    assert sesiones("end-all", "--yes")[1] == f"{20 - count} sessions ended ({PLACE})\n"


@contextmanager
def not_ignored(number: signal.Signals) -> Iterator[None]:
    """nohup ignores SIGHUP for the tests, and a shell SIGINT for what it starts in the background:
    the command would respect that."""
    default = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_is_in_the_audit_line(
    sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    sesiones.create(7, 8)

    async def interrupt() -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(10)

    fails_at(2, monkeypatch, interrupt)
    with not_ignored(number):
        code, out, errors = sesiones("end-all", "--yes")
    assert (code, out) == (Exit.INTERRUPTED, "")
    # The reply about the first session has come, or has been left behind.
    told = re.escape(f"0 to 1 session ended ({PLACE}){MISSING}: interrupted\n")
    assert re.search(f"(: {told}|{AUDIT.format('1 session', 'interrupted')})", errors)


def test_redis_that_is_away_ends_nothing_and_says_so(sesiones: CommandLine) -> None:
    code, out, errors = sesiones.at("redis://127.0.0.1:1")("end-all", "--yes")
    assert (code, out) == (Exit.UNAVAILABLE, "")
    assert re.match(
        r"\S+ \S+ INFO sesiones\.cli: end-all by .*: 0 sessions ended .*: failed: ", errors
    )


def test_user_with_thousands_of_sessions_is_ended_in_slices(
    sesiones: CommandLine, own: "Redis", server: RedisServer
) -> None:
    """No call ends more than a page of keys."""

    async def create() -> None:
        async with aclosing(open_store(server.url, max_per_user=10_000)) as store:
            for _ in range(15):
                await asyncio.gather(*(store.create(7, "d") for _ in range(200)))

    asyncio.run(create())
    own.config_resetstat()
    assert sesiones("end-all", "--yes", "--json")[1] == '{"Sesiones_Eliminadas":3000}\n'
    assert not own.exists(index_key(7))
    calls: dict[str, Any] = own.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] >= 3000 / 600


def test_ending_is_published_for_the_caches_of_nodes(sesiones: CommandLine, own: "Redis") -> None:
    (sesion,) = sesiones.create(7)
    with own.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.subscribe("sesiones:invalidated")
        sesiones("end-all", "--yes")
        deadline = time.monotonic() + 10
        while (message := listener.get_message(timeout=0.1)) is None or message[
            "type"
        ] != "message":
            assert time.monotonic() < deadline
    assert session_key(sesion.Token_Sesion).endswith(message["data"])


def test_other_prefix_and_database_are_left(sesiones: CommandLine, own: "Redis") -> None:
    made = sesiones.create(7)
    there = sesiones.at(f"{sesiones.url}?db=3")
    there.create(8)
    for words in ([], ["--key-prefix", "otros"], ["--key-prefix", "sesiones:otros"]):
        if words:
            assert sesiones("end-all", "--yes", *words)[1].startswith("0 sessions ended")
    assert there("end-all", "--yes")[1] == "1 session ended (prefix sesiones, database 3)\n"
    assert live(sesiones, *made) == [True]


@pytest.mark.parametrize("words", [[], ["--yes"], ["--yes", "--before", "1"]])
def test_end_all_of_nothing_warns_of_the_prefix(sesiones: CommandLine, words: list[str]) -> None:
    made = sesiones.create(7)
    code, _, errors = sesiones("end-all", "--key-prefix", "otros", *words)
    assert code == Exit.OK
    assert "warning: prefix otros, database 0: there is nothing at all" in errors
    assert "nothing at all" not in sesiones("end-all", *words)[2]
    assert live(sesiones, *made) == [words != ["--yes"]]
    assert "nothing at all" not in sesiones("end-all", *words)[2]


def test_replica_is_refused_though_it_takes_writes(sesiones: CommandLine) -> None:
    """What ends there lives on at the master."""
    with (
        RedisServer(port=str(free_port())) as master,
        replica_of(master, appendonly="no", replica_read_only="no") as replica,
    ):
        made = sesiones.at(master.url).create(7)
        code, out, errors = sesiones.at(replica.url)("end-all", "--yes")
        assert (code, out) == (Exit.UNAVAILABLE, "")
        assert errors.endswith("sesiones: the server is a replica\n")
        assert live(sesiones.at(master.url), *made) == [True]
