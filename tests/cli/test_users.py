"""`sesiones users`: what it lists and ends, also where the index or other keys were lost."""

import asyncio
import re
from contextlib import aclosing, suppress
from pathlib import Path

import orjson
import pytest
from redis import Redis
from redis.exceptions import MovedError

from sesiones import tokens
from sesiones.cli.exits import Exit
from sesiones.sesion import Sesion
from sesiones.store import SessionStore
from tests.harness.command_line import CommandLine
from tests.harness.records import (
    NEIGHBOUR,
    age,
    counter_key,
    digest,
    evict,
    index_key,
    lua,
    session_key,
    write_record,
)
from tests.harness.redis_server import RedisCluster, RedisServer
from tests.harness.stores import open_store

PLACE = "prefix sesiones, database 0"
NOTHING = f"sesiones: warning: {PLACE}: there is nothing at all"
ENDED = r"ended session \d+ of user 7, ses_#[0-9a-f]{8}: operator by command line\n"
INCOMPLETE = "the index of user 7 is incomplete: it lacks {} of {} live sessions"


def ids(sessions: list[Sesion]) -> set[int]:
    return {sesion.ID_Sesion for sesion in sessions}


# Whole indexes


def test_json_lists_whole_sessions_without_their_tokens(sesiones: CommandLine) -> None:
    made = sesiones.create(7, 7, 7, NEIGHBOUR)
    code, out, _ = sesiones.users("7", "--json")
    listed = {each["ID_Sesion"]: each for each in orjson.loads(out)}
    assert (code, set(listed)) == (0, ids(made[:3]))
    for sesion in made[:3]:
        seen = listed[sesion.ID_Sesion]
        assert sesion.Token_Sesion not in out
        assert re.fullmatch(r"ses_#[0-9a-f]{8}", seen["Token_Sesion"])
        assert seen == sesion._asdict() | {"Token_Sesion": seen["Token_Sesion"]}


def test_text_lists_a_line_for_each_session(sesiones: CommandLine) -> None:
    sesiones.create(7, 7, 7, NEIGHBOUR)
    code, out, errors = sesiones.users("7")
    assert (code, errors) == (0, "")
    assert out.startswith(f"user 7: 3 live sessions ({PLACE})\n")
    assert out.count("  active  started 20") == out.count("device of 7\n") == 3


def test_sessions_are_listed_in_the_order_of_the_api(sesiones: CommandLine, own: "Redis") -> None:
    """The most recently used first, then the newest first."""
    made = sesiones.create(7, 7, 7, 7)
    for sesion, seconds in zip(made, (30, 60, 10, 30), strict=True):
        age(own, sesion, seconds)
    wanted = [made[number].ID_Sesion for number in (2, 3, 0, 1)]
    for words in ["7"], ["7", "--deep"]:
        listed = orjson.loads(sesiones.users(*words, "--json")[1])
        assert [each["ID_Sesion"] for each in listed] == wanted
        lines = sesiones.users(*words)[1].splitlines()[1:]
        assert [int(line.split()[0]) for line in lines] == wanted


def test_end_and_end_all_end_sessions_of_the_user_alone(
    sesiones: CommandLine, own: "Redis"
) -> None:
    made = sesiones.create(7, 7, 7, NEIGHBOUR)
    one, neighbour = str(made[1].ID_Sesion), str(made[3].ID_Sesion)
    for words, code, out in (
        (["--end", one], Exit.OK, f"1 session ended ({PLACE})\n"),
        (["--end", one], Exit.NO, f"0 sessions ended ({PLACE})\n"),  # it has ended already
        (["--end", neighbour], Exit.NO, f"0 sessions ended ({PLACE})\n"),
        (["--end-all", "--json"], Exit.OK, '{"Sesiones_Eliminadas":2}\n'),
        (["--end-all"], Exit.OK, f"0 sessions ended ({PLACE})\n"),
    ):
        assert sesiones.users("7", *words)[:2] == (code, out)
    assert not own.exists(index_key(7))
    assert len(own.keys("*:h:*")) == 1


def test_device_with_control_characters_is_escaped(sesiones: CommandLine, own: "Redis") -> None:
    (sesion,) = sesiones.create(7)
    write_record(own, session_key(sesion.Token_Sesion), dispositivo="a\x1b[2J\nb")
    code, out, _ = sesiones.users("7")
    assert code == 0
    assert out.endswith("  a\\x1b[2J\\nb\n")


def test_bad_record_is_logged_and_leaves_the_others_listed(
    sesiones: CommandLine, own: "Redis", caplog: pytest.LogCaptureFixture
) -> None:
    odd, bad, _ = (sesion.Token_Sesion for sesion in sesiones.create(7, 7, 7))
    write_record(own, session_key(odd), actividad=10**12)
    write_record(own, session_key(bad), estado=2)
    code, out, _ = sesiones.users("7")
    assert code == 0
    assert "2 live sessions" in out
    assert f"used {10**12} " in out  # a date that the calendar lacks
    assert f"session ses_#{tokens.fingerprint(bad)}: " in caplog.text


@pytest.mark.anyio
async def test_ending_works_when_redis_is_full(server: RedisServer, own: "Redis") -> None:
    async with aclosing(open_store(server.url)) as store:
        made = [await store.create(7, "d") for _ in range(3)]
        own.config_set("maxmemory", 1)
        try:
            assert await store.end_user(7, made[0].ID_Sesion) == 1
            assert await store.end_user(7) == 2
        finally:
            own.config_set("maxmemory", 0)
        assert await store.sessions(7) == []


def test_each_ended_session_is_a_log_line_of_the_service(
    sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sesiones.create(7, 7)
    errors = sesiones.users("7", "--end", str(made[0].ID_Sesion))[2]
    name = tokens.fingerprint(made[0].Token_Sesion)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO sesiones\.store: "
        rf"ended session {made[0].ID_Sesion} of user 7, ses_#{name}: operator by command line\n",
        errors,
    )
    monkeypatch.setenv("SESIONES_LOG_FORMAT", "json")
    code, out, errors = sesiones.users("7", "--end-all", "--json")
    assert (code, out) == (0, '{"Sesiones_Eliminadas":1}\n')
    line = orjson.loads(errors)
    assert (line["event"], line["reason"]) == ("ended", "operator")
    assert line["ID_Sesion"] == made[1].ID_Sesion
    assert sesiones.users("8", "--end-all")[2].count("ended session") == 0


def test_each_of_many_ended_sessions_is_a_log_line(sesiones: CommandLine) -> None:
    """A service writes so many lines in slices."""
    made = sesiones.create(*[7] * 50)
    errors = sesiones.users("7", "--end-all")[2]
    found = re.findall(
        r"ended session (\d+) of user 7, ses_#[0-9a-f]{8}: operator by command line\n", errors
    )
    assert sorted(map(int, found)) == sorted(ids(made))


def test_slow_operation_is_not_reported(
    sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sesiones.store.timings.SLOW_SECONDS", 0.0)
    sesiones.create(7)
    for words in ["7"], ["7", "--deep"]:
        assert sesiones.users(*words)[2] == ""


# Sessions that the index does not name


@pytest.mark.parametrize("lost", ["a member", "every member", "the index", "its type"])
def test_deep_finds_and_ends_what_the_index_does_not_name(
    sesiones: CommandLine, own: "Redis", lost: str
) -> None:
    made = sesiones.create(7, 7, 7, NEIGHBOUR, 8)
    live, others = made[:3], made[3:]
    if lost == "a member":
        own.zrem(index_key(7), digest(made[1].Token_Sesion))
    else:
        own.delete(index_key(7))
    if lost == "its type":
        own.set(index_key(7), "x", ex=1000)
    known = ids(live) - {made[1].ID_Sesion} if lost == "a member" else set()
    missing = INCOMPLETE.format(3 - len(known), 3)

    assert sesiones.listed("7") == known
    code, out, errors = sesiones.users("7", "--deep")
    assert code == 0
    assert out.startswith("user 7: 3 live sessions (")
    assert missing in errors
    assert sesiones.listed("7", "--deep") == ids(live)

    code, out, errors = sesiones.users("7", "--end-all", "--deep")
    assert (code, out) == (0, f"3 sessions ended ({PLACE})\n")
    assert missing in errors
    assert len(re.findall(ENDED, errors)) == 3
    assert not own.exists(*(session_key(sesion.Token_Sesion) for sesion in live))
    # Those of the others remain, in the same bucket too.
    assert own.exists(*(session_key(sesion.Token_Sesion) for sesion in others)) == 2
    assert sesiones.users("7", "--end-all", "--deep")[1].startswith("0 sessions ended")


def test_deep_ends_one_session_that_the_index_does_not_name(
    sesiones: CommandLine, own: "Redis"
) -> None:
    one, other, neighbour = sesiones.create(7, 7, NEIGHBOUR)
    own.delete(index_key(7))
    assert sesiones.users("7", "--end", str(one.ID_Sesion))[0] == Exit.NO
    assert sesiones.users("7", "--end", str(neighbour.ID_Sesion), "--deep")[0] == Exit.NO
    code, out, errors = sesiones.users("7", "--end", str(one.ID_Sesion), "--deep", "--json")
    assert (code, out) == (0, '{"Sesiones_Eliminadas":1}\n')
    assert len(re.findall(ENDED, errors)) == 1
    assert not own.exists(session_key(one.Token_Sesion))
    assert own.exists(session_key(other.Token_Sesion))


def test_script_ends_no_session_of_another_user(sesiones: CommandLine, own: "Redis") -> None:
    one, other = sesiones.create(7, NEIGHBOUR)
    own.delete(index_key(7))
    digests = [digest(sesion.Token_Sesion) for sesion in (one, other, one)]
    _, *ended = own.eval(lua("end_user"), 1, index_key(7), "", *digests)
    assert [(each, usuario) for each, _, usuario in ended] == [(digests[0], "7")]
    assert own.exists(session_key(other.Token_Sesion))


def test_deep_on_a_whole_index_warns_of_nothing(sesiones: CommandLine) -> None:
    made = sesiones.create(7, 7)
    assert sesiones.listed("7", "--deep") == ids(made)
    assert sesiones.users("7", "--deep")[2] == ""
    code, out, errors = sesiones.users("7", "--end-all", "--deep")
    assert (code, out) == (0, f"2 sessions ended ({PLACE})\n")
    assert re.fullmatch(rf"(\S+ \S+ INFO sesiones.store: {ENDED}){{2}}", errors)


def test_deep_passes_over_odd_keys_of_the_bucket(sesiones: CommandLine, own: "Redis") -> None:
    (sesion,) = sesiones.create(7)
    own.delete(index_key(7))
    base = session_key(sesion.Token_Sesion)[: -len(digest(sesion.Token_Sesion))]
    own.set(f"{base}x", "x", ex=1000)
    own.set(base + "\u00ff" * 22, "x", ex=1000)
    own.set(f"{base}{'A' * 22}", "x", ex=1000)  # of another type
    own.hset(f"{base}{'B' * 22}", "1", "7")  # neither whole nor with an expiry
    own.copy(session_key(sesion.Token_Sesion), f"{base}x:{'C' * 22}")
    assert sesiones.listed("7", "--deep") == {sesion.ID_Sesion}
    assert sesiones.users("7", "--end-all", "--deep")[1].startswith("1 session ended")


def test_deep_finds_one_session_among_thousands_of_keys(
    sesiones: CommandLine, own: "Redis"
) -> None:
    """SCAN returns so many keys in several calls."""
    (sesion,) = sesiones.create(7)
    own.delete(index_key(7))
    for start in range(0, 5000, 1000):
        own.mset({f"sesiones:{{AA}}:h:{number}": "x" for number in range(start, start + 1000)})
    assert sesiones.listed("7", "--deep") == {sesion.ID_Sesion}


def test_deep_looks_at_every_master_of_a_cluster(
    cluster: RedisCluster, sesiones: CommandLine
) -> None:
    on_cluster = sesiones.at(cluster.url)
    for user in map(str, range(7, 13)):  # on several masters
        made = on_cluster.create(int(user), int(user))
        for client in cluster.clients.values():
            with suppress(MovedError):  # the key is on another node
                client.delete(index_key(int(user)))
        assert on_cluster.listed(user) == set()
        assert on_cluster.listed(user, "--deep") == ids(made)
        assert on_cluster.users(user, "--end-all", "--deep")[1].startswith("2 sessions ended")
        assert on_cluster.listed(user, "--deep") == set()


def test_missing_index_is_reported_with_the_way_to_find_more(
    sesiones: CommandLine, own: "Redis"
) -> None:
    sesiones.create(7)
    own.delete(index_key(7))
    for words in ["7"], ["7", "--end-all"], ["7", "--end-all", "--json"], ["7", "--end", "5"]:
        _, out, errors = sesiones.users(*words)
        assert errors.startswith("sesiones: the index of user 7 is missing")
        assert "--deep" in errors
        assert "--deep" not in out
    sesiones.create(7)
    assert sesiones.users("7")[2] == ""


@pytest.mark.parametrize("words", [["7"], ["7", "--end-all"], ["7", "--end-all", "--json"]])
def test_users_warns_where_redis_evicts_or_has_evicted(
    sesiones: CommandLine, own: "Redis", words: list[str]
) -> None:
    sesiones.create(7, 7)
    own.config_set("maxmemory-policy", "allkeys-lru")
    try:
        errors = sesiones.users(*words)[2]
        assert "sesiones: warning: maxmemory-policy allkeys-lru, 0 keys evicted" in errors
        assert "--deep" in errors
        assert "warning" not in sesiones.users(*words, "--deep")[2]
        evict(own)
    finally:
        own.config_set("maxmemory-policy", "noeviction")
    sesiones.create(7)
    warning = r"warning: maxmemory-policy noeviction, [\d,]+ keys? evicted"
    assert re.search(warning, sesiones.users(*words)[2])


def test_slide_ends_a_session_outside_of_its_index(sesiones: CommandLine, own: "Redis") -> None:
    """As doctor's advice says."""
    (sesion,) = sesiones.create(7)
    own.delete(index_key(7))

    async def check() -> None:
        async with aclosing(open_store(sesiones.url, touch_seconds=0)) as store:
            assert await store.find(sesion.Token_Sesion) is None

    asyncio.run(check())
    assert sesiones.listed("7") == set()
    assert not own.exists(session_key(sesion.Token_Sesion))


@pytest.mark.parametrize("words", [["7"], ["7", "--end-all"], ["7", "--end", "5"]])
def test_redis_user_of_the_service_is_enough_without_deep(
    server: RedisServer, own: "Redis", sesiones: CommandLine, words: list[str]
) -> None:
    acl = (Path(__file__).parents[2] / "docs" / "acl.conf").read_text("utf-8")
    rules = re.findall(r"^user sesiones (.*)$", acl, re.MULTILINE)[0].split()
    own.execute_command("ACL", "SETUSER", "sesiones", "reset", *rules)  # type: ignore[no-untyped-call]
    limited = sesiones.at(f"unix://sesiones:PASSWORD@{server.socket}")
    code, _, errors = limited.users(*words)
    assert code == (Exit.NO if "--end" in words else Exit.OK)
    assert errors.startswith(NOTHING)
    sesiones.create(7)
    if "--end" not in words:
        assert limited.users(*words)[1].startswith(("user 7: 1 live session (", "1 session ended"))
    assert limited.users("7", "--deep")[0] == Exit.UNAVAILABLE  # SCAN is not allowed


# The prefix and the database


@pytest.mark.parametrize(
    ("query", "prefix", "place"),
    [
        ("", "sesiones", "prefix sesiones, database 0"),
        ("?db=3", "otros", "prefix otros, database 3"),
    ],
)
def test_each_report_names_prefix_and_database(
    sesiones: CommandLine, query: str, prefix: str, place: str
) -> None:
    there = sesiones.at(sesiones.url + query)
    for words in ["7"], ["7", "--end", "5"], ["7", "--end-all"], ["7", "--deep"]:
        assert f"({place})" in there.users(*words, "--key-prefix", prefix)[1]
    out = there("doctor", "--deep", "--key-prefix", prefix)[1]
    assert f"prefix: {place}: there is nothing at all" in out
    assert f"keys: {place}: none" in out


def test_prefix_that_was_never_used_is_a_warning(sesiones: CommandLine, own: "Redis") -> None:
    def level(*flags: str) -> str:
        code, findings, _ = sesiones.doctor(*flags)
        assert code == Exit.OK
        return findings["prefix"]["level"]

    own.set("another", "x")
    assert level() == level("--deep") == "warning"
    for words in ["7"], ["7", "--json"], ["7", "--end-all"], ["7", "--deep"], ["7", "--end", "5"]:
        assert sesiones.users(*words)[2].startswith(NOTHING)
    sesiones.create(7)
    assert level() == "ok"
    assert level("--key-prefix", "otros") == "warning"
    # A prefix that was used and is empty by now is well.
    assert sesiones.users("7", "--end-all")[0] == 0
    assert level() == "ok"
    assert NOTHING not in sesiones.users("7")[2]
    own.delete(counter_key(7))
    assert level() == "warning"
    # So is one with sessions whose counters were evicted.
    sesiones.create(7)
    own.delete(counter_key(7), index_key(7))
    assert level() == "ok"
    assert NOTHING not in sesiones.users("7")[2]


@pytest.mark.parametrize("user", [7, 8, 2**53 - 1])
def test_was_used_finds_the_counter_of_any_bucket(
    sesiones: CommandLine, own: "Redis", user: int
) -> None:
    own.incr(counter_key(user))

    async def was_used(store: SessionStore) -> bool:
        async with aclosing(store):
            return await store.operators().was_used()

    assert asyncio.run(was_used(open_store(sesiones.url)))
    assert not asyncio.run(was_used(open_store(sesiones.url, key_prefix="otros")))
