"""`sesiones doctor` and `sesiones users`, on real servers: each fault is found, and what is well is
not called one."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import orjson
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from sesiones import tokens
from sesiones.cli import Exit, doctor, main
from sesiones.redis_client import Commands, Execute
from sesiones.sesion import Refusal, Sesion, StoreUnavailable
from sesiones.settings import Settings
from tests.harness.records import counter_key, digest, index_key, session_key, write_record
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer, free_port
from tests.harness.stores import open_store, replica_of

DOCS = Path(__file__).parents[2] / "docs"
OPERATE = (DOCS / "operate.md").read_text("utf-8")

PLACE = "prefix sesiones, database 0"
ENDED = "1 session", "0 sessions", "0 sessions"

Findings = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def own(server: RedisServer) -> Iterator["Redis"]:
    with Redis(unix_socket_path=str(server.socket), decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "TIMEOUT"):
        monkeypatch.delenv(f"SESIONES_REDIS_{name}", raising=False)
    monkeypatch.setenv("SESIONES_REDIS_TIMEOUT", "2")  # a busy machine


def diagnose(
    capsys: pytest.CaptureFixture[str], url: str, *flags: str
) -> tuple[int, Findings, list[str]]:
    """The exit code, the findings by subject, and those subjects that are not well."""
    code = main(["doctor", "--json", "--redis-url", url, *flags])
    findings: Findings = {each["subject"]: each for each in orjson.loads(capsys.readouterr().out)}
    bad = [subject for subject, each in findings.items() if each["level"] != "ok"]
    for subject in bad:
        assert findings[subject]["advice"]
    return code, findings, bad


def make(url: str, *users: int) -> list[Sesion]:
    async def run() -> list[Sesion]:
        async with aclosing(open_store(url)) as store:
            return [await store.create(user, f"device of {user}") for user in users]

    return asyncio.run(run())


def test_well(server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]) -> None:
    make(server.url, 7, 7, 8)
    code, findings, bad = diagnose(capsys, server.url, "--deep")
    # Whoever may do everything could be worse.
    assert (code, bad) == (0, ["permissions"])
    assert findings["keys"]["text"] == "7 looked at: each is as it should be"
    assert main(["doctor", "--redis-url", server.url]) == 0
    shown = capsys.readouterr()
    assert "WARNING  permissions: the user default may do everything" in shown.out
    assert "\n         -> Give the service an ACL user" in shown.out
    assert shown.err == ""  # no progress where nobody watches


@contextmanager
def configured(redis: "Redis", name: str, value: str) -> Iterator[None]:
    before = str(redis.config_get(name)[name])
    redis.config_set(name, value)
    yield
    redis.config_set(name, before)


@pytest.mark.parametrize(
    ("name", "value", "subject", "code"),
    [
        ("maxmemory-policy", "allkeys-lru", "eviction", 1),
        ("maxmemory-policy", "volatile-ttl", "eviction", 1),
        ("maxmemory", "1", "memory", 1),
        ("appendonly", "no", "persistence", 0),
        ("hash-max-listpack-value", "64", "hash-max-listpack-value", 0),
        ("min-replicas-to-write", "1", "writes", 1),
    ],
)
def test_what_is_wrong_with_a_server(
    server: RedisServer,
    own: "Redis",
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    subject: str,
    code: int,
) -> None:
    with configured(own, name, value):
        exit_code, _, bad = diagnose(capsys, server.url)
        assert subject in bad
        assert exit_code == code
    assert subject not in diagnose(capsys, server.url)[2]


def test_replicas_that_are_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        RedisServer(port=str(free_port())) as server,
        Redis(unix_socket_path=str(server.socket)) as redis,
    ):
        make(server.url, 7)
        assert "replicas" not in diagnose(capsys, server.url)[1]
        code, findings, bad = diagnose(capsys, server.url, "--wait-replicas", "1")
        assert (code, "replicas" in bad) == (1, True)
        assert findings["replicas"]["text"] == "0 connected; a write waits for 1"
        with replica_of(server):
            assert "replicas" not in diagnose(capsys, server.url, "--wait-replicas", "1")[2]
            assert "replicas" in diagnose(capsys, server.url, "--wait-replicas", "2")[2]
        redis.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", "-wait"])
        findings = diagnose(capsys, server.url, "--wait-replicas", "1")[1]
        assert "wait" in findings["replicas"]["text"]
        assert "Allow it" in findings["replicas"]["advice"]
        redis.replicaof("127.0.0.1", 1)
        redis.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"])
        assert {"role", "replicas"} <= set(diagnose(capsys, server.url, "--wait-replicas", "1")[2])


def test_a_replica(server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]) -> None:
    own.replicaof("127.0.0.1", 1)
    try:
        code, findings, bad = diagnose(capsys, server.url)
    finally:
        own.replicaof("NO", "ONE")
    assert code == 1
    assert {"role", "writes"} <= set(bad)
    assert "master" in findings["role"]["advice"]


def test_keys_without_an_expiry(
    server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    own.mset({f"other:{i}": 1 for i in range(4097)})
    assert "expiries" in diagnose(capsys, server.url)[2]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"])
def test_there_is_no_redis(capsys: pytest.CaptureFixture[str], url: str) -> None:
    code, findings, bad = diagnose(capsys, url, "--deep")
    assert (code, bad, len(findings)) == (1, ["connection"], 1)
    assert main(["users", "7", "--redis-url", url]) == Exit.UNAVAILABLE
    assert re.fullmatch(r"sesiones: .+\n", capsys.readouterr().err)


@pytest.mark.anyio
async def test_an_error_without_a_text_is_named_by_its_kind() -> None:
    async def execute(*_: object) -> None:
        raise TimeoutError

    (finding,) = [each async for each in doctor._examine_master(execute, Settings())]
    assert finding.text == "Redis cannot be asked: TimeoutError"


def test_bad_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ["doctor"], ["users", "7"]:
        assert main([*command, "--redis-url", "http://x"]) == 2
        assert capsys.readouterr().err.startswith("sesiones: --redis-url is not a valid URL")
    for bad in "x", "-1", "1.5", str(2**53), "\u0667":
        with pytest.raises(SystemExit):
            main(["users", bad])


def faults(capsys: pytest.CaptureFixture[str], url: str) -> list[str]:
    code, findings, _ = diagnose(capsys, url, "--deep")
    first, *lines = findings["keys"]["text"].splitlines()
    assert code == 1
    assert re.match(rf"{len(lines)} faults? in \d+ keys?:", first)
    return lines


def test_each_fault_of_a_key(
    server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    sesiones = make(server.url, *range(10, 19))
    keys = [session_key(sesion.Token_Sesion) for sesion in sesiones]
    indexes = [index_key(sesion.ID_Usuario) for sesion in sesiones]
    expected = []

    own.persist(keys[0])
    expected.append(f"{keys[0]}: the key has no expiry")
    own.zrem(indexes[1], digest(sesiones[1].Token_Sesion))
    expected.append(f"{keys[1]}: the session is not in the index of user 11")
    own.delete(keys[2])
    expected.append(f"{indexes[2]}: the index names a session that is not there")
    own.persist(indexes[3])
    expected.append(f"{indexes[3]}: the key has no expiry")
    own.expireat(keys[4], sesiones[4].Fecha_Expiracion + 9)
    expected.append(f"{keys[4]}: the session and the index differ in when it expires")
    own.expire(indexes[5], 100)
    expected.append(f"{indexes[5]}: the index expires before its latest session")
    own.expire(counter_key(16), 1000)
    expected.append(f"{counter_key(16)}: the counter expires: ID_Sesion would repeat")
    own.hset(keys[7], "1", "x")
    expected.append(f"{keys[7]}: the field 1 is not a session")
    own.delete(keys[8])
    own.set(keys[8], "x", ex=1000)
    expected.append(f"{keys[8]}: WRONGTYPE Operation against a key holding the wrong kind of value")
    # Another prefix, and another's keys, are none of ours.
    own.hset("sesiones2:{AA}:h:x", "a", "b")
    own.set("sesiones:x", "y")
    assert sorted(faults(capsys, server.url)) == sorted(expected)


def test_on_a_cluster(
    cluster: RedisCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = cluster.url
    users = range(500, 560)
    make(url, *users)
    code, findings, bad = diagnose(capsys, url, "--deep")
    assert code == 0
    assert len([subject for subject in findings if subject.endswith(": version")]) == 3
    assert all(subject.endswith(": permissions") for subject in bad)
    first = findings["keys"]
    assert int(first["text"].split()[0]) >= 120
    for server in cluster.servers.values():
        with Redis(unix_socket_path=str(server.socket), decode_responses=True) as node:
            node.persist(next(node.scan_iter("*:h:*", count=1000)))
    assert [line.partition(": ")[2] for line in faults(capsys, url)] == [
        "the key has no expiry"
    ] * 3
    assert main(["users", "500", "--end-all", "--redis-url", url]) == 0
    assert main(["users", "500", "--redis-url", url, "--json"]) == 0
    assert capsys.readouterr().out == f"1 session ended ({PLACE})\n[]\n"


def test_one_node_of_a_cluster_is_not_enough(
    cluster: RedisCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, findings, _ = diagnose(capsys, f"redis://127.0.0.1:{next(iter(cluster.servers))}")
    assert code == 1
    assert findings["cluster"]["level"] == "error"


def test_a_user_who_may_not_look(
    server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not allowed is said, with what to do: it is not the server's absence."""
    service = (DOCS / "acl.conf").read_text("utf-8")
    rules = re.findall(r"^user sesiones (.*)$", service, re.MULTILINE)[0].split()
    own.execute_command("ACL", "SETUSER", "sesiones", *rules)  # type: ignore[no-untyped-call]
    url = f"unix://sesiones:PASSWORD@{server.socket}"
    _, findings, bad = diagnose(capsys, url, "--deep")
    assert "connection" not in findings
    assert "INFO" in bad
    assert findings["keys"]["advice"] == doctor.PERMISSION_ADVICE


@pytest.mark.anyio
async def test_a_server_without_the_setting() -> None:
    async def execute(*_: object) -> list[object]:
        return []

    assert (await doctor._listpack(execute)).level == "ok"


# Sentinels


class Sentinels:
    """Stands for Commands: what each Sentinel replies to SENTINEL MASTERS, or raises."""

    def __init__(self, **replies: object) -> None:
        self._replies = replies

    async def sentinels(self) -> dict[str, Execute]:
        return {name: partial(self._execute, reply) for name, reply in self._replies.items()}

    @staticmethod
    async def _execute(reply: object, *command: object) -> object:
        assert command == ("SENTINEL", "MASTERS")
        if isinstance(reply, Exception):
            raise reply
        return reply


def master(name: str = "m", port: int = 6379, **fields: object) -> list[bytes]:
    """One entry of the reply."""
    described = {"name": name, "ip": "10.0.0.1", "port": port, "flags": "master"}
    described |= {"num_other_sentinels": 2, "quorum": 2} | fields
    return [
        str(word).encode()
        for name, value in described.items()
        for word in (name.replace("_", "-"), value)
    ]


async def examined(**replies: object) -> list[doctor.Finding]:
    settings = Settings(redis_url="redis+sentinel://a:1,b:2,c:3/m")
    commands = cast(Commands, Sentinels(**replies))
    return await doctor.examine_sentinels(commands, settings)


@pytest.mark.anyio
async def test_sentinels_that_agree_are_well() -> None:
    findings = await examined(a=[master()], b=[master("x", 1), master()], c=[master()])
    assert [(each.level, each.subject) for each in findings] == [
        ("ok", "sentinel a"),
        ("ok", "sentinel b"),
        ("ok", "sentinel c"),
    ]
    assert findings[0].text == "master 10.0.0.1:6379, quorum 2 of 3 Sentinels"
    assert await examined() == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (ConnectionRefusedError(111, "refused"), "it cannot be asked: [Errno 111] refused"),
        (TimeoutError(), "it cannot be asked: TimeoutError"),
        (AuthenticationError("NOAUTH"), "it cannot be asked: NOAUTH"),
        ([], "it knows no master m"),
        ([master("x")], "it knows no master m"),
        ([master(port=7000)], "master 10.0.0.1:7000, quorum 2 of 3 Sentinels"),
        ([master(flags="master,s_down")], "quorum 2 of 3 Sentinels, master,s_down"),
        ([master(quorum=4)], "master 10.0.0.1:6379, quorum 4 of 3 Sentinels"),
        (b"PONG", "what answers is no Sentinel"),
        (None, "what answers is no Sentinel"),
        ([[b"name"]], "what answers is no Sentinel"),
        ([[b"name", b"m"]], "what answers is no Sentinel"),
    ],
)
async def test_each_sentinel_that_is_not_well_is_an_error(reply: object, text: str) -> None:
    first, bad, last = await examined(a=[master()], b=reply, c=[master()])
    assert (first.level, last.level) == ("ok", "ok")
    assert (bad.level, bad.subject) == ("error", "sentinel b")
    assert text in bad.text
    assert bad.advice


@pytest.mark.anyio
async def test_a_sentinel_that_the_url_does_not_name_is_a_warning() -> None:
    for finding in await examined(a=[master()], b=[master()]):
        assert finding.level == "warning"
        assert "SESIONES_REDIS_URL" in finding.advice


def test_every_sentinel_of_the_url_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with RedisSentinels(replicas=0, sentinels=2) as redis:
        make(redis.url, 7)
        code, findings, bad = diagnose(capsys, redis.url)
        names = [f"sentinel 127.0.0.1:{port}" for port in redis.sentinels]
        assert code == 0
        assert set(names) <= set(findings)
        assert not set(names) & set(bad)
        address = next(iter(redis.sentinels))
        wrong = f"redis+sentinel://127.0.0.1:{address},127.0.0.1:1/mymaster"
        code, findings, bad = diagnose(capsys, wrong)
        assert code == 1
        assert findings["sentinel 127.0.0.1:1"]["level"] == "error"
        assert "Sentinels" in findings[names[0]]["text"]


# Users


def test_bad_records_cost_the_others_nothing(
    server: RedisServer,
    own: "Redis",
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd, bad, _ = (sesion.Token_Sesion for sesion in make(server.url, 7, 7, 7))
    write_record(own, session_key(odd), actividad=10**12)
    write_record(own, session_key(bad), estado=2)
    assert main(["users", "7", "--redis-url", server.url]) == 0
    shown = capsys.readouterr().out
    assert "2 live sessions" in shown
    assert f"used {10**12} " in shown
    assert f"session {tokens.fingerprint(bad)}: " in caplog.text


def test_a_user(server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]) -> None:
    made = make(server.url, 7, 7, 7, 2061)  # who shares the bucket of 7
    command = ["users", "7", "--redis-url", server.url]
    assert main([*command, "--json"]) == 0
    shown = capsys.readouterr().out
    listed = {each["ID_Sesion"]: each for each in orjson.loads(shown)}
    assert set(listed) == {sesion.ID_Sesion for sesion in made[:3]}
    for sesion in made[:3]:
        assert sesion.Token_Sesion not in shown
        seen = listed[sesion.ID_Sesion]
        assert re.fullmatch(r"ses_#[0-9a-f]{8}", seen["Token_Sesion"])
        assert seen == sesion._asdict() | {"Token_Sesion": seen["Token_Sesion"]}

    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"user 7: 3 live sessions ({PLACE})\n")
    assert text.count("  active  started 20") == text.count("device of 7\n") == 3

    assert main([*command, "--end", str(made[1].ID_Sesion)]) == 0
    assert main([*command, "--end", str(made[1].ID_Sesion)]) == 1  # it is not there any more
    assert main([*command, "--end", str(made[3].ID_Sesion)]) == 1  # another user's
    assert capsys.readouterr().out == "".join(f"{n} ended ({PLACE})\n" for n in ENDED)
    assert main([*command, "--end-all", "--json"]) == 0
    assert main([*command, "--end-all"]) == 0
    out = capsys.readouterr().out
    assert out == f'{{"Sesiones_Eliminadas":2}}\n0 sessions ended ({PLACE})\n'
    assert not own.exists(index_key(7))
    assert len(own.keys("*:h:*")) == 1
    with pytest.raises(SystemExit):
        main([*command, "--end", "1", "--end-all"])


def test_a_device_does_not_drive_the_terminal(
    server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    (sesion,) = make(server.url, 7)
    write_record(own, session_key(sesion.Token_Sesion), dispositivo="a\x1b[2J\nb")
    assert main(["users", "7", "--redis-url", server.url]) == 0
    assert capsys.readouterr().out.endswith("  a\\x1b[2J\\nb\n")


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


# The ACL user of the docs


def test_the_acl_user_of_the_docs(
    server: RedisServer, own: "Redis", capsys: pytest.CaptureFixture[str]
) -> None:
    """It may do all that the service and doctor do, and no more."""
    (rule,) = re.findall(r"^user sesiones .*(?:\n  .*)*", OPERATE, re.MULTILINE)
    words = rule.replace("\\\n", " ").replace("PASSWORD", "hunter2").split()
    own.execute_command("ACL", "SETUSER", *words[1:])  # type: ignore[no-untyped-call]
    url = server.url.replace("unix://", "unix://sesiones:hunter2@")
    try:
        asyncio.run(live(url))
        assert diagnose(capsys, url, "--deep")[2] == []
        with pytest.raises(StoreUnavailable, match="access"):
            asyncio.run(make_one(url, "other"))
        for command in ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "SET", "maxmemory", "1"):
            assert own.acl_dryrun("sesiones", *command) != "OK"
    finally:
        own.acl_deluser("sesiones")


async def make_one(url: str, key_prefix: str) -> None:
    async with aclosing(open_store(url, key_prefix=key_prefix)) as store:
        await store.create(7, "d")


async def live(url: str) -> None:
    async with aclosing(open_store(url, max_per_user=2)) as store:
        made = [await store.create(7, "d") for _ in range(3)]
        found = [await store.find(sesion.Token_Sesion) for sesion in made]
        one, two = (sesion for sesion in found if sesion is not None)
        sooner = one._replace(Fecha_Expiracion=one.Fecha_Expiracion - 9)
        assert await store.update(sooner) is not None
        assert await store.end(one.Token_Sesion, two.Token_Sesion) == 1
        assert await store.end(two.Token_Sesion, two.Token_Sesion) is Refusal.UNAUTHENTICATED
        assert await store.end_all(one.Token_Sesion, "") == 1
        await store.create(7, "d")
        await store.probe(5)
        assert len(await store.sessions(7)) == 1
        assert await store.end_user(7) == 1
