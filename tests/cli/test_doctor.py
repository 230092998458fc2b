"""`sesiones doctor` on real servers: it finds each fault, and no fault where all is well."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from sesiones.cli.exits import Exit
from sesiones.cli.findings import PERMISSION_ADVICE, Finding
from sesiones.cli.masters import _listpack, evictions, examine_master
from sesiones.cli.sentinels import examine_sentinels
from sesiones.redis_client import Commands, Execute
from sesiones.settings import Settings
from tests.harness.command_line import CommandLine
from tests.harness.ports import free_port
from tests.harness.records import counter_key, digest, evict, index_key, session_key
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer
from tests.harness.stores import replica_of

pytestmark = pytest.mark.anyio

ACL = (Path(__file__).parents[2] / "docs" / "acl.conf").read_text("utf-8")


def test_well_configured_server_has_one_warning(sesiones: CommandLine) -> None:
    sesiones.create(7, 7, 8)
    code, findings, bad = sesiones.doctor("--deep")
    assert (code, bad) == (0, ["permissions"])  # the default user may do everything
    assert findings["keys"]["text"] == "7 looked at: each is as it should be"
    code, out, errors = sesiones("doctor")
    assert code == 0
    assert "WARNING  permissions: the user default may do everything" in out
    assert "\n         -> Give the service an ACL user" in out
    assert errors == ""  # no progress, because no terminal shows it


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
def test_bad_configuration_is_found(
    sesiones: CommandLine, own: "Redis", name: str, value: str, subject: str, code: int
) -> None:
    with configured(own, name, value):
        found = sesiones.doctor()
        assert subject in found.bad
        assert found.code == code
    assert subject not in sesiones.doctor().bad


def test_missing_replicas_are_an_error_where_writes_wait_for_them(sesiones: CommandLine) -> None:
    with (
        RedisServer(port=str(free_port())) as server,
        server.client() as redis,
    ):
        there = sesiones.at(server.url)
        there.create(7)
        assert "replicas" not in there.doctor().findings
        code, findings, bad = there.doctor("--wait-replicas", "1")
        assert (code, "replicas" in bad) == (1, True)
        assert findings["replicas"]["text"] == "0 connected; a write waits for 1"
        with replica_of(server):
            assert "replicas" not in there.doctor("--wait-replicas", "1").bad
            assert "replicas" in there.doctor("--wait-replicas", "2").bad
        redis.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", "-wait"])
        findings = there.doctor("--wait-replicas", "1").findings
        assert "wait" in findings["replicas"]["text"]
        assert "Allow it" in findings["replicas"]["advice"]
        redis.replicaof("127.0.0.1", 1)
        redis.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"])
        assert {"role", "replicas"} <= set(there.doctor("--wait-replicas", "1").bad)


def test_replica_is_an_error(sesiones: CommandLine, own: "Redis") -> None:
    own.replicaof("127.0.0.1", 1)
    try:
        code, findings, bad = sesiones.doctor()
    finally:
        own.replicaof("NO", "ONE")
    assert code == 1
    assert {"role", "writes"} <= set(bad)
    assert "master" in findings["role"]["advice"]


def test_more_keys_without_expiry_than_counters_are_a_warning(
    sesiones: CommandLine, own: "Redis"
) -> None:
    own.mset({f"other:{i}": 1 for i in range(4097)})
    assert "expiries" in sesiones.doctor().bad


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"])
def test_redis_that_is_away_is_the_only_finding(sesiones: CommandLine, url: str) -> None:
    code, findings, bad = sesiones.at(url).doctor("--deep")
    assert (code, bad, len(findings)) == (1, ["connection"], 1)
    code, _, errors = sesiones.at(url).users("7")
    assert code == Exit.UNAVAILABLE
    assert re.fullmatch(r"sesiones: .+\n", errors)


async def test_error_without_a_text_is_named_by_its_type() -> None:
    async def execute(*_: object) -> None:
        raise TimeoutError

    (finding,) = [each async for each in examine_master(execute, Settings())]
    assert finding.text == "Redis cannot be asked: TimeoutError"


async def test_server_without_the_setting_is_well() -> None:
    async def execute(*_: object) -> list[object]:
        return []

    assert (await _listpack(execute)).level == "ok"


def test_bad_url_is_a_usage_error(sesiones: CommandLine) -> None:
    for command in ["doctor"], ["users", "7"]:
        code, _, errors = sesiones.at("http://x")(*command)
        assert code == Exit.USAGE
        assert errors.startswith("sesiones: --redis-url is not a valid URL")


def faults(sesiones: CommandLine) -> list[str]:
    code, findings, _ = sesiones.doctor("--deep")
    first, *lines = findings["keys"]["text"].splitlines()
    assert code == 1
    assert re.match(rf"{len(lines)} faults? in \d+ keys?:", first)
    return lines


def test_deep_finds_each_fault_of_a_key(sesiones: CommandLine, own: "Redis") -> None:
    made = sesiones.create(*range(10, 19))
    keys = [session_key(sesion.Token_Sesion) for sesion in made]
    indexes = [index_key(sesion.ID_Usuario) for sesion in made]
    own.persist(keys[0])
    own.zrem(indexes[1], digest(made[1].Token_Sesion))
    own.delete(keys[2])
    own.persist(indexes[3])
    own.expireat(keys[4], made[4].Fecha_Expiracion + 9)
    own.expire(indexes[5], 100)
    own.expire(counter_key(16), 1000)
    own.hset(keys[7], "1", "x")
    own.delete(keys[8])
    own.set(keys[8], "x", ex=1000)
    # Keys of another prefix and of another application are not examined.
    own.hset("sesiones2:{AA}:h:x", "a", "b")
    own.set("sesiones:x", "y")
    assert sorted(faults(sesiones)) == sorted(
        [
            f"{keys[0]}: the key has no expiry",
            f"{keys[1]}: the session is not in the index of user 11",
            f"{indexes[2]}: the index names a session that is not there",
            f"{indexes[3]}: the key has no expiry",
            f"{keys[4]}: the session and the index differ in when it expires",
            f"{indexes[5]}: the index expires before its latest session",
            f"{counter_key(16)}: the counter expires: ID_Sesion would repeat",
            f"{keys[7]}: the field 1 is not a session",
            f"{keys[8]}: WRONGTYPE Operation against a key holding the wrong kind of value",
        ]
    )


def test_every_master_of_a_cluster_is_examined(
    cluster: RedisCluster, sesiones: CommandLine
) -> None:
    there = sesiones.at(cluster.url)
    there.create(*range(500, 560))
    code, findings, bad = there.doctor("--deep")
    assert code == 0
    assert len([subject for subject in findings if subject.endswith(": version")]) == 3
    assert all(subject.endswith(": permissions") for subject in bad)
    assert int(findings["keys"]["text"].split()[0]) >= 120
    for server in cluster.servers.values():
        with server.client(decode_responses=True) as node:
            node.persist(next(node.scan_iter("*:h:*", count=1000)))
    assert [line.partition(": ")[2] for line in faults(there)] == ["the key has no expiry"] * 3
    ended = "1 session ended (prefix sesiones, database 0)\n"
    assert there.users("500", "--end-all")[:2] == (0, ended)
    assert there.users("500", "--json")[:2] == (0, "[]\n")


def test_one_node_of_a_cluster_is_an_error(cluster: RedisCluster, sesiones: CommandLine) -> None:
    code, findings, _ = sesiones.at(f"redis://127.0.0.1:{next(iter(cluster.servers))}").doctor()
    assert code == 1
    assert findings["cluster"]["level"] == "error"


def test_missing_permissions_are_named_with_what_to_do(
    server: RedisServer, own: "Redis", sesiones: CommandLine
) -> None:
    """They are not taken for a server that is away."""
    rules = re.findall(r"^user sesiones (.*)$", ACL, re.MULTILINE)[0].split()
    own.execute_command("ACL", "SETUSER", "sesiones", *rules)  # type: ignore[no-untyped-call]
    found = sesiones.at(f"unix://sesiones:PASSWORD@{server.socket}").doctor("--deep")
    assert "connection" not in found.findings
    assert "INFO" in found.bad
    assert found.findings["keys"]["advice"] == PERMISSION_ADVICE


def test_doctor_names_the_command_that_ends_a_session_outside_of_its_index(
    sesiones: CommandLine, own: "Redis"
) -> None:
    (sesion,) = sesiones.create(7)
    own.delete(index_key(7))
    code, findings, _ = sesiones.doctor("--deep")
    assert code == Exit.NO
    key = session_key(sesion.Token_Sesion)
    fault = f"1 fault in 2 keys:\n{key}: the session is not in the index of user 7"
    assert findings["keys"]["text"] == fault
    assert "`sesiones users ID_USUARIO --end-all --deep`" in findings["keys"]["advice"]
    assert sesiones.users("7", "--end-all", "--deep")[0] == 0
    code, findings, _ = sesiones.doctor("--deep")
    assert (code, findings["keys"]["level"]) == (Exit.OK, "ok")


async def test_policy_that_the_server_does_not_tell_is_a_warning() -> None:
    async def execute(*_: object) -> bytes:
        return b"role:master\r\n"

    async def masters() -> dict[str, Execute]:
        return {"redis": execute}

    (finding,) = [
        each async for each in evictions(cast(Commands, SimpleNamespace(masters=masters)))
    ]
    assert (finding.level, finding.subject) == ("warning", "eviction")
    assert "noeviction" in finding.advice


def test_doctor_reports_evictions_and_every_policy_that_evicts(
    sesiones: CommandLine, own: "Redis"
) -> None:
    for prefix in "allkeys", "volatile":
        for order in "lru", "lfu", "random", *(["ttl"] if prefix == "volatile" else []):
            own.config_set("maxmemory-policy", f"{prefix}-{order}")
            try:
                code, findings, _ = sesiones.doctor()
            finally:
                own.config_set("maxmemory-policy", "noeviction")
            assert (code, findings["eviction"]["level"]) == (Exit.NO, "error")
    sesiones.create(7)
    own.config_set("maxmemory-policy", "allkeys-random")
    evict(own)
    own.config_set("maxmemory-policy", "noeviction")
    code, findings, _ = sesiones.doctor()
    assert (code, findings["eviction"]["level"]) == (Exit.OK, "warning")
    assert "--deep" in findings["eviction"]["advice"]


# Sentinels


class Sentinels:
    """Commands with Sentinels that reply to SENTINEL MASTERS, or raise."""

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


async def examined(**replies: object) -> list[Finding]:
    settings = Settings(redis_url="redis+sentinel://a:1,b:2,c:3/m")
    return await examine_sentinels(cast(Commands, Sentinels(**replies)), settings)


async def test_sentinels_that_agree_are_well() -> None:
    findings = await examined(a=[master()], b=[master("x", 1), master()], c=[master()])
    assert [(each.level, each.subject) for each in findings] == [
        ("ok", "sentinel a"),
        ("ok", "sentinel b"),
        ("ok", "sentinel c"),
    ]
    assert findings[0].text == "master 10.0.0.1:6379, quorum 2 of 3 Sentinels"
    assert await examined() == []


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
async def test_sentinel_that_differs_or_fails_is_an_error(reply: object, text: str) -> None:
    first, bad, last = await examined(a=[master()], b=reply, c=[master()])
    assert (first.level, last.level) == ("ok", "ok")
    assert (bad.level, bad.subject) == ("error", "sentinel b")
    assert text in bad.text
    assert bad.advice


async def test_sentinel_that_the_url_does_not_name_is_a_warning() -> None:
    for finding in await examined(a=[master()], b=[master()]):
        assert finding.level == "warning"
        assert "SESIONES_REDIS_URL" in finding.advice


@pytest.mark.sentinel
def test_every_sentinel_of_the_url_is_asked(sesiones: CommandLine) -> None:
    with RedisSentinels(replicas=0, sentinels=2) as redis:
        there = sesiones.at(redis.url)
        there.create(7)
        code, findings, bad = there.doctor()
        names = [f"sentinel 127.0.0.1:{port}" for port in redis.sentinels]
        assert code == 0
        assert set(names) <= set(findings)
        assert not set(names) & set(bad)
        address = next(iter(redis.sentinels))
        wrong = sesiones.at(f"redis+sentinel://127.0.0.1:{address},127.0.0.1:1/mymaster")
        code, findings, _ = wrong.doctor()
        assert code == 1
        assert findings["sentinel 127.0.0.1:1"]["level"] == "error"
        assert "Sentinels" in findings[names[0]]["text"]
        # What docs/deploy/README.md says that it needs there.
        allowed = "+sentinel|get-master-addr-by-name", "+sentinel|masters"
        words = "ACL", "SETUSER", "default", "reset", "on", "nopass", *allowed
        for client in redis.sentinels.values():
            client.execute_command(*words)  # type: ignore[no-untyped-call]
        assert not set(names) & set(there.doctor().bad)
