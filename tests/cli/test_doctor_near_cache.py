"""What `sesiones doctor` says of the near-cache, and that a command has none."""

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from itertools import chain, repeat
from socket import socket

import pytest
from redis import Redis

from sesiones.cli import near_cache
from sesiones.cli.near_cache import examine_near_cache
from sesiones.redis_client import connect
from sesiones.settings import Settings
from tests.harness.command_line import CommandLine
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer
from tests.harness.relay import Relay

CACHE = ("--cache-seconds", "30", "--touch-seconds", "30")
CHANNEL = "sesiones:invalidated"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never comes."""
    monkeypatch.setattr(near_cache, "LEASE_WAIT_SECONDS", 0.5)


@contextmanager
def default_user(redis: "Redis", *rules: str) -> Iterator[None]:
    def acl_setuser(*rules: str) -> None:
        redis.execute_command("ACL", "SETUSER", "default", *rules)  # type: ignore[no-untyped-call]

    acl_setuser(*rules)
    try:
        yield
    finally:
        acl_setuser("+@all", "allchannels")


def test_doctor_finds_a_lease_where_the_cache_is_on(sesiones: CommandLine) -> None:
    code, findings, bad = sesiones.doctor(*CACHE)
    assert (code, bad) == (0, ["permissions", "prefix"])
    assert (
        findings["channel"]["text"]
        == f"the user of SESIONES_REDIS_URL may publish and subscribe on {CHANNEL}"
    )
    assert findings["near-cache"]["text"].startswith("a lease on 1 master within ")
    assert findings["near-cache"]["text"].endswith(" from memory is at most 30 s old")


def test_doctor_names_the_channel_of_the_prefix(sesiones: CommandLine) -> None:
    findings = sesiones.doctor("--key-prefix", "otros").findings
    assert (
        findings["channel"]["text"]
        == "the user of SESIONES_REDIS_URL may publish on otros:invalidated"
    )


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        (["-publish"], "publish"),
        (["-subscribe"], "subscribe"),
        (["-publish", "-subscribe"], "publish nor subscribe"),
        (["resetchannels", "&sesiones"], "publish nor subscribe"),
    ],
)
def test_missing_permission_is_an_error_where_the_cache_is_on(
    sesiones: CommandLine, own: "Redis", rules: list[str], missing: str
) -> None:
    with default_user(own, *rules):
        code, findings, _ = sesiones.doctor(*CACHE)
    assert code == 1
    assert findings["channel"]["level"] == findings["near-cache"]["level"] == "error"
    assert (
        findings["channel"]["text"]
        == f"the user of SESIONES_REDIS_URL may not {missing} on {CHANNEL}"
    )
    assert f"+publish +subscribe &{CHANNEL}" in findings["channel"]["advice"]
    assert findings["near-cache"]["text"].startswith("no lease on 1 of 1 master: ")
    assert "no permissions" in findings["near-cache"]["text"]


def test_node_without_a_cache_that_may_not_publish_gets_a_hint(
    sesiones: CommandLine, own: "Redis"
) -> None:
    """It is no warning, because nothing is wrong while no node of the prefix has a cache."""
    with default_user(own, "-publish", "-subscribe"):
        code, findings, bad = sesiones.doctor()
    assert (code, bad) == (0, ["permissions", "prefix"])
    assert (
        findings["channel"]["text"]
        == f"the user of SESIONES_REDIS_URL may not publish on {CHANNEL}"
    )
    assert "Before any node has a near-cache" in findings["channel"]["advice"]
    assert "near-cache" not in findings


@pytest.mark.parametrize(
    ("touch", "level", "text"),
    [
        ("0", "warning", "no answer is kept"),
        ("1", "ok", "at most 1 s old"),
        ("60", "ok", "at most 30 s old"),
    ],
)
def test_touch_interval_that_shortens_the_life_of_answers_is_named(
    sesiones: CommandLine, touch: str, level: str, text: str
) -> None:
    findings = sesiones.doctor("--cache-seconds", "30", "--touch-seconds", touch).findings
    assert findings["near-cache"]["level"] == level
    assert text in findings["near-cache"]["text"]
    assert ("SESIONES_TOUCH_SECONDS" in findings["near-cache"]["advice"]) is (touch != "60")


def test_lease_on_each_master_of_a_cluster(
    cluster: RedisCluster, sesiones: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sesiones.at(cluster.url)
    code, findings, _ = there.doctor(*CACHE)
    assert code == 0
    assert findings["near-cache"]["text"].startswith("a lease on 3 masters within ")
    monkeypatch.setattr(near_cache, "LEASE_WAIT_SECONDS", 0.5)
    address, server = next(iter(cluster.servers.items()))
    with (
        Redis(unix_socket_path=str(server.socket)) as node,
        default_user(node, "-subscribe"),
    ):
        code, findings, _ = there.doctor(*CACHE)
    assert code == 1
    assert findings[f"127.0.0.1:{address}: channel"]["level"] == "error"
    assert findings["near-cache"]["text"].startswith("no lease on 1 of 3 masters: ")


@pytest.mark.sentinel
def test_lease_on_the_master_behind_sentinel(sesiones: CommandLine) -> None:
    with RedisSentinels(replicas=0, sentinels=1) as redis:
        code, findings, _ = sesiones.at(redis.url).doctor(*CACHE)
    assert code == 0
    assert findings["near-cache"]["text"].startswith("a lease on 1 master within ")


@pytest.mark.anyio
@pytest.mark.usefixtures("impatient")
async def test_subscription_that_leads_to_another_server_is_an_error() -> None:
    settings = Settings(cache_seconds=30, touch_seconds=30)
    with (
        RedisServer(port=str(free_port())) as one,
        RedisServer(port=str(free_port())) as other,
        Relay(0) as relay,
    ):
        targets = chain([int(one.port)], repeat(int(other.port)))

        def spread(client: socket) -> None:
            relay.pass_on(client, next(targets))

        relay.become(spread)
        async with aclosing(connect(f"redis://127.0.0.1:{relay.port}", 2)) as commands:
            finding = await examine_near_cache(commands, settings)
    assert (finding.level, finding.subject) == ("error", "near-cache")
    assert finding.text.startswith("no lease on 1 of 1 master")
    assert "no proxy" in finding.advice


@pytest.mark.anyio
async def test_redis_that_is_away_is_a_finding_of_the_cache_too() -> None:
    async with aclosing(connect("redis://127.0.0.1:1", 2)) as commands:
        finding = await examine_near_cache(commands, Settings(cache_seconds=30))
    assert (finding.level, finding.subject) == ("error", "connection")


def test_user_that_may_not_eval_leaves_the_channel_unknown(
    sesiones: CommandLine, own: "Redis"
) -> None:
    with default_user(own, "-eval"):
        findings = sesiones.doctor(*CACHE).findings
    assert findings["channel"]["text"].startswith("not known: ")


@pytest.mark.parametrize("command", [["users", "7"], ["users", "7", "--end-all"], ["doctor"]])
def test_command_without_need_of_the_cache_has_no_subscription(
    sesiones: CommandLine, own: "Redis", monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    sesiones.create(7)
    if command[0] == "users":
        monkeypatch.setenv("SESIONES_CACHE_SECONDS", "30")
    own.config_resetstat()
    assert sesiones(*command)[0] == 0
    assert "cmdstat_subscribe" not in own.info("commandstats")


def test_ending_by_a_command_is_published(sesiones: CommandLine, own: "Redis") -> None:
    sesiones.create(7, 7)
    with own.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(CHANNEL)
        assert channel.get_message(timeout=5) is None
        assert sesiones.users("7", "--end-all")[0] == 0
        message = channel.get_message(timeout=5)
    assert message is not None
    assert len(message["data"].split()) == 2
