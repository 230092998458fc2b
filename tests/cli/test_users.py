"""`sesiones users` and `doctor` where keys were lost: no session is overlooked in silence."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import orjson
import pytest
from redis import Redis
from redis.exceptions import MovedError, OutOfMemoryError

from sesiones import tokens
from sesiones.cli import Exit, main
from sesiones.cli.doctor import place as place_of
from sesiones.sesion import Sesion
from sesiones.settings import Settings
from sesiones.store import SessionStore
from tests.harness.records import NEIGHBOUR, counter_key, digest, index_key, lua, session_key
from tests.harness.redis_server import RedisCluster, RedisServer
from tests.harness.stores import open_store

ENDED = r"ended session \d+ of user 7, ses_#[0-9a-f]{8}: operator\n"
INCOMPLETE = "the index of user 7 is incomplete: it lacks {} of {} live sessions"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def own(server: RedisServer) -> Iterator["Redis"]:
    with Redis(unix_socket_path=str(server.socket), decode_responses=True) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDIS_TIMEOUT", "KEY_PREFIX", "LOG_FORMAT"):
        monkeypatch.delenv(f"SESIONES_{name}", raising=False)


def make(url: str, *users: int) -> list[Sesion]:
    async def run() -> list[Sesion]:
        async with aclosing(open_store(url)) as store:
            return [await store.create(user, f"device of {user}") for user in users]

    return asyncio.run(run())


class Users:
    """`sesiones users`, of one Redis."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self._capsys = url, capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main(["users", *words, "--redis-url", self.url])
        return code, *self._capsys.readouterr()

    def listed(self, *words: str) -> set[int]:
        code, out, _ = self(*words, "--json")
        assert code == 0
        return {each["ID_Sesion"] for each in orjson.loads(out)}


@pytest.fixture
def users(server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]) -> Users:
    return Users(server.url, capsys)


def doctor(
    capsys: pytest.CaptureFixture[str], url: str, *flags: str
) -> tuple[int, dict[str, dict[str, str]]]:
    capsys.readouterr()
    code = main(["doctor", "--json", "--redis-url", url, *flags])
    return code, {each["subject"]: each for each in orjson.loads(capsys.readouterr().out)}


def evict(redis: "Redis") -> None:
    redis.config_set("maxmemory", "1")
    with suppress(OutOfMemoryError):
        redis.set("x", "y")
    redis.config_set("maxmemory", "0")
    assert redis.info("stats")["evicted_keys"] > 0


# Sessions that the index does not name


@pytest.mark.parametrize("lost", ["a member", "every member", "the index", "its type"])
def test_deep_finds_and_ends_what_the_index_does_not_name(
    users: Users, own: "Redis", lost: str
) -> None:
    made = make(users.url, 7, 7, 7, NEIGHBOUR, 8)
    ids = {sesion.ID_Sesion for sesion in made[:3]}
    if lost == "a member":
        own.zrem(index_key(7), digest(made[1].Token_Sesion))
    else:
        own.delete(index_key(7))
    if lost == "its type":
        own.set(index_key(7), "x", ex=1000)
    known = ids - {made[1].ID_Sesion} if lost == "a member" else set()
    missing = len(ids - known)

    assert users.listed("7") == known
    code, out, errors = users("7", "--deep")
    assert code == 0
    assert out.startswith("user 7: 3 live sessions (")
    assert INCOMPLETE.format(missing, 3) in errors
    assert users.listed("7", "--deep") == ids

    code, out, errors = users("7", "--end-all", "--deep")
    assert (code, out) == (0, "3 sessions ended (prefix sesiones, database 0)\n")
    assert INCOMPLETE.format(missing, 3) in errors
    assert len(re.findall(ENDED, errors)) == 3
    assert not own.exists(*(session_key(sesion.Token_Sesion) for sesion in made[:3]))
    # Those of the others remain, in the same bucket too.
    assert own.exists(*(session_key(sesion.Token_Sesion) for sesion in made[3:])) == 2
    assert users("7", "--end-all", "--deep")[1].startswith("0 sessions ended")


def test_deep_ends_one_session_that_the_index_does_not_name(users: Users, own: "Redis") -> None:
    one, other, neighbour = make(users.url, 7, 7, NEIGHBOUR)
    own.delete(index_key(7))
    assert users("7", "--end", str(one.ID_Sesion))[0] == Exit.NO
    assert users("7", "--end", str(neighbour.ID_Sesion), "--deep")[0] == Exit.NO
    code, out, errors = users("7", "--end", str(one.ID_Sesion), "--deep", "--json")
    assert (code, out) == (0, '{"Sesiones_Eliminadas":1}\n')
    assert len(re.findall(ENDED, errors)) == 1
    assert not own.exists(session_key(one.Token_Sesion))
    assert own.exists(session_key(other.Token_Sesion))


def test_the_script_ends_no_session_of_another_user(users: Users, own: "Redis") -> None:
    one, other = make(users.url, 7, NEIGHBOUR)
    own.delete(index_key(7))
    digests = [digest(sesion.Token_Sesion) for sesion in (one, other, one)]
    ended = own.eval(lua("end_user"), 1, index_key(7), "", *digests)
    assert [(each, usuario) for each, _, usuario in ended] == [(digests[0], "7")]
    assert own.exists(session_key(other.Token_Sesion))


def test_deep_on_a_whole_index_warns_of_nothing(users: Users) -> None:
    ids = {sesion.ID_Sesion for sesion in make(users.url, 7, 7)}
    assert users.listed("7", "--deep") == ids
    assert users("7", "--deep")[2] == ""
    code, out, errors = users("7", "--end-all", "--deep")
    assert (code, out) == (0, "2 sessions ended (prefix sesiones, database 0)\n")
    assert re.fullmatch(rf"(\S+ \S+ INFO sesiones.store: {ENDED}){{2}}", errors)


def test_deep_is_not_misled_by_odd_keys_of_the_bucket(users: Users, own: "Redis") -> None:
    (sesion,) = make(users.url, 7)
    own.delete(index_key(7))
    base = session_key(sesion.Token_Sesion)[: -len(digest(sesion.Token_Sesion))]
    own.set(f"{base}x", "x", ex=1000)
    own.set(base + "\u00ff" * 22, "x", ex=1000)
    own.set(f"{base}{'A' * 22}", "x", ex=1000)  # of another type
    own.hset(f"{base}{'B' * 22}", "1", "7")  # neither whole nor with an expiry
    own.copy(session_key(sesion.Token_Sesion), f"{base}x:{'C' * 22}")
    assert users.listed("7", "--deep") == {sesion.ID_Sesion}
    assert users("7", "--end-all", "--deep")[1].startswith("1 session ended")


def test_deep_looks_at_every_key(users: Users, own: "Redis") -> None:
    """One among many, which take several calls of SCAN."""
    (sesion,) = make(users.url, 7)
    own.delete(index_key(7))
    for start in range(0, 5000, 1000):
        own.mset({f"sesiones:{{AA}}:h:{number}": "x" for number in range(start, start + 1000)})
    assert users.listed("7", "--deep") == {sesion.ID_Sesion}


def test_deep_on_a_cluster(
    cluster: RedisCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    users = Users(cluster.url, capsys)
    for user in range(7, 13):  # on several masters
        ids = {sesion.ID_Sesion for sesion in make(users.url, user, user)}
        for client in cluster.clients.values():
            with suppress(MovedError):  # it is another node's
                client.delete(index_key(user))
        assert users.listed(str(user)) == set()
        assert users.listed(str(user), "--deep") == ids
        assert users(str(user), "--end-all", "--deep")[1].startswith("2 sessions ended")
        assert users.listed(str(user), "--deep") == set()


def test_an_index_that_names_nothing_is_not_believed_in_silence(users: Users, own: "Redis") -> None:
    make(users.url, 7)
    own.delete(index_key(7))
    for words in ["7"], ["7", "--end-all"], ["7", "--end-all", "--json"], ["7", "--end", "5"]:
        _, out, errors = users(*words)
        assert errors.startswith("sesiones: the index of user 7 is missing")
        assert "--deep" in errors
        assert "--deep" not in out
    make(users.url, 7)
    assert users("7")[2] == ""


@pytest.mark.parametrize("words", [["7"], ["7", "--end-all"], ["7", "--end-all", "--json"]])
def test_users_warns_where_redis_evicts_or_has_evicted(
    users: Users, own: "Redis", words: list[str]
) -> None:
    make(users.url, 7, 7)
    own.config_set("maxmemory-policy", "allkeys-lru")
    try:
        errors = users(*words)[2]
        assert "sesiones: warning: maxmemory-policy allkeys-lru, 0 keys evicted" in errors
        assert "--deep" in errors
        assert "warning" not in users(*words, "--deep")[2]
        evict(own)
    finally:
        own.config_set("maxmemory-policy", "noeviction")
    make(users.url, 7)
    assert re.search(
        r"warning: maxmemory-policy noeviction, [\d,]+ keys? evicted", users(*words)[2]
    )


def test_doctor_says_what_ends_a_session_outside_of_its_index(
    users: Users, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    (sesion,) = make(users.url, 7)
    own.delete(index_key(7))
    code, findings = doctor(capsys, users.url, "--deep")
    assert code == Exit.NO
    key = session_key(sesion.Token_Sesion)
    assert findings["keys"]["text"] == (
        f"1 fault in 2 keys:\n{key}: the session is not in the index of user 7"
    )
    assert "`sesiones users ID_USUARIO --end-all --deep`" in findings["keys"]["advice"]
    assert users("7", "--end-all", "--deep")[0] == 0
    code, findings = doctor(capsys, users.url, "--deep")
    assert (code, findings["keys"]["level"]) == (Exit.OK, "ok")


def test_a_slide_ends_a_session_outside_of_its_index(users: Users, own: "Redis") -> None:
    """Doctor's advice says so."""
    (sesion,) = make(users.url, 7)
    own.delete(index_key(7))

    async def check() -> None:
        async with aclosing(open_store(users.url, touch_seconds=0)) as store:
            assert await store.find(sesion.Token_Sesion) is None

    asyncio.run(check())
    assert users.listed("7") == set()
    assert not own.exists(session_key(sesion.Token_Sesion))


def test_doctor_warns_of_evictions_and_of_every_policy_that_evicts(
    users: Users, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    for prefix in "allkeys", "volatile":
        for order in "lru", "lfu", "random", *(["ttl"] if prefix == "volatile" else []):
            own.config_set("maxmemory-policy", f"{prefix}-{order}")
            try:
                code, findings = doctor(capsys, users.url)
            finally:
                own.config_set("maxmemory-policy", "noeviction")
            assert (code, findings["eviction"]["level"]) == (Exit.NO, "error")
    make(users.url, 7)
    own.config_set("maxmemory-policy", "allkeys-random")
    evict(own)
    own.config_set("maxmemory-policy", "noeviction")
    code, findings = doctor(capsys, users.url)
    assert (code, findings["eviction"]["level"]) == (Exit.OK, "warning")
    assert "--deep" in findings["eviction"]["advice"]


@pytest.mark.parametrize("words", [["7"], ["7", "--end-all"], ["7", "--end", "5"]])
def test_the_services_own_redis_user_is_enough_without_deep(
    server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    acl = (Path(__file__).parents[2] / "docs" / "acl.conf").read_text("utf-8")
    rules = re.findall(r"^user sesiones (.*)$", acl, re.MULTILINE)[0].split()
    own.execute_command("ACL", "SETUSER", "sesiones", "reset", *rules)  # type: ignore[no-untyped-call]
    users = Users(f"unix://sesiones:PASSWORD@{server.socket}", capsys)
    code, _, errors = users(*words)
    assert code == (Exit.NO if "--end" in words else Exit.OK)
    assert errors.startswith("sesiones: warning: prefix sesiones, database 0: there is nothing")
    make(server.url, 7)
    if "--end" not in words:
        assert users(*words)[1].startswith(("user 7: 1 live session (", "1 session ended ("))
    assert users("7", "--deep")[0] == Exit.UNAVAILABLE  # SCAN is not allowed


# The place, and what is logged


@pytest.mark.parametrize(
    ("query", "prefix", "place"),
    [
        ("", "sesiones", "prefix sesiones, database 0"),
        ("?db=3", "otros", "prefix otros, database 3"),
    ],
)
def test_each_report_names_prefix_and_database(
    users: Users, capsys: pytest.CaptureFixture[str], query: str, prefix: str, place: str
) -> None:
    flags = ["--redis-url", users.url + query, "--key-prefix", prefix]
    for words in ["7"], ["7", "--end", "5"], ["7", "--end-all"], ["7", "--deep"]:
        main(["users", *words, *flags])
        assert f"({place})" in capsys.readouterr().out
    main(["doctor", "--deep", *flags])
    out = capsys.readouterr().out
    assert f"prefix: {place}: there is nothing at all" in out
    assert f"keys: {place}: none" in out


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://h", 0),
        ("redis://u:p@h:1/4", 4),
        ("redis://h?db=4", 4),
        ("rediss://h/4", 4),
        ("unix:///s.sock?db=4", 4),
        ("redis+sentinel://u:p@h:1,h:2/m", 0),
        ("redis+sentinel://h:1,h:2/m/4", 4),
        ("redis+cluster://h:1,h:2", 0),
        ("redis+cluster://h:1/0", 0),
    ],
)
def test_the_database_is_named_by_every_form_of_url(url: str, database: int) -> None:
    assert place_of(Settings(redis_url=url)) == f"prefix sesiones, database {database}"


def test_nothing_at_all_is_a_warning(
    users: Users, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    def level(*flags: str) -> str:
        code, findings = doctor(capsys, users.url, *flags)
        assert code == Exit.OK
        return findings["prefix"]["level"]

    nothing = "sesiones: warning: prefix sesiones, database 0: there is nothing at all"
    own.set("another", "x")
    assert level() == level("--deep") == "warning"
    for words in ["7"], ["7", "--json"], ["7", "--end-all"], ["7", "--deep"], ["7", "--end", "5"]:
        assert users(*words)[2].startswith(nothing)
    make(users.url, 7)
    assert level() == "ok"
    assert level("--key-prefix", "otros") == "warning"
    # What has been used and is empty by now is none of it.
    assert users("7", "--end-all")[0] == 0
    assert level() == "ok"
    assert nothing not in users("7")[2]
    own.delete(counter_key(7))
    assert level() == "warning"
    # Sessions whose counters were evicted are there all the same.
    make(users.url, 7)
    own.delete(counter_key(7), index_key(7))
    assert level() == "ok"
    assert nothing not in users("7")[2]


@pytest.mark.parametrize("bucket_of", [7, 8, 2**53 - 1])
def test_was_used_sees_the_counter_of_any_bucket(
    users: Users, own: "Redis", bucket_of: int
) -> None:
    own.incr(counter_key(bucket_of))

    async def was_used(store: SessionStore) -> bool:
        async with aclosing(store):
            return await store.was_used()

    assert asyncio.run(was_used(open_store(users.url)))
    assert not asyncio.run(was_used(open_store(users.url, key_prefix="otros")))


def test_every_bucket_has_a_number_of_its_own() -> None:
    assert sorted(map(tokens.bucket_number, tokens.BUCKETS)) == list(range(4096))
    assert tokens.user_bucket(7) in tokens.BUCKETS


def test_ending_logs_a_line_a_session_as_the_service_does(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(users.url, 7, 7)
    errors = users("7", "--end", str(made[0].ID_Sesion))[2]
    name = tokens.fingerprint(made[0].Token_Sesion)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO sesiones\.store: "
        rf"ended session {made[0].ID_Sesion} of user 7, ses_#{name}: operator\n",
        errors,
    )
    monkeypatch.setenv("SESIONES_LOG_FORMAT", "json")
    code, out, errors = users("7", "--end-all", "--json")
    assert (code, out) == (0, '{"Sesiones_Eliminadas":1}\n')
    line = orjson.loads(errors)
    assert line["event"] == "ended"
    assert line["reason"] == "operator"
    assert line["ID_Sesion"] == made[1].ID_Sesion
    assert users("8", "--end-all")[2].count("ended session") == 0
