"""Moves to another server and to another version."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisSentinels, RedisServer, wait_until
from tests.harness.relay import Relay
from tests.runbooks.machines import Runbook, Start
from tests.runbooks.sessions import Node, create, end, live

pytestmark = [pytest.mark.redis, pytest.mark.slow]

BEGIN = "Moving and upgrading Redis"


def by_stopping(runbook: Runbook, node: Node) -> None:
    runbook("By stopping the old server")


def by_pausing(runbook: Runbook, node: Node) -> None:
    runbook("By pausing writes", 0)
    checks, failed = node.checks, node.failed_checks
    wait_until(lambda: node.checks > checks + 5, "checks")
    assert node.failed_checks == failed  # they go on
    runbook("By pausing writes", 1)


@pytest.mark.parametrize("versions", ["Redis to Redis", "Redis to Valkey", "Valkey to Valkey"])
@pytest.mark.parametrize("way", [by_stopping, by_pausing])
def test_move_loses_no_session_and_no_logout(
    start: Start, way: Callable[[Runbook, Node], None], versions: str
) -> None:
    old, _, new = versions.split()
    runbook = start("old", "new", old=old, new=new)
    urls = [machine.url for machine in runbook.machines.values()]
    earlier = create(urls[0], *range(1000, 1050))
    with Node(urls[0]) as node:
        node.wait_for(20)
        runbook(BEGIN)
        node.wait_for(20)
        way(runbook, node)
    assert live(urls[1], [*earlier, *node.kept]) == [True] * (50 + len(node.kept))
    assert live(urls[1], node.ended) == [False] * len(node.ended)
    with Node(urls[1], 500_000) as node:
        node.wait_for(5)


def test_promoting_before_the_old_server_stops_brings_logouts_back(start: Start) -> None:
    """Why the page says never to do that."""
    runbook = start("old", "new")
    urls = [machine.url for machine in runbook.machines.values()]
    made = create(urls[0], 7)
    runbook(BEGIN)
    runbook.run("redis-cli -h new REPLICAOF NO ONE")
    end(urls[0], *made)  # by a node that has still the old URL
    later = create(urls[0], 8)
    assert live(urls[1], [*made, *later]) == [True, False]


def test_failover_behind_one_address_loses_no_session_and_no_logout(start: Start) -> None:
    runbook = start("old", "new")
    old, new = runbook.machines.values()
    with Relay(old.port) as address, Node(f"redis://127.0.0.1:{address.port}") as node:
        node.wait_for(20)
        runbook(BEGIN)
        node.wait_for(20)
        runbook("By a failover behind one address")
        address.target = new.port
        node.wait_for(20)
    assert live(new.url, node.kept) == [True] * len(node.kept)
    assert live(new.url, node.ended) == [False] * len(node.ended)
    with old.client() as redis:
        assert redis.info("replication")["role"] == "slave"


@pytest.mark.sentinel
@pytest.mark.usefixtures("redis_cli")
def test_failover_behind_sentinel_loses_no_session_and_no_logout(tmp_path: Path) -> None:
    # Another replica, which the Sentinels must not choose.
    with (
        RedisSentinels(1, down_after_milliseconds=1500) as sentinels,
        RedisServer(port=str(free_port())) as new,
    ):
        old = next(iter(sentinels.servers.values()))
        port = next(iter(sentinels.sentinels))
        runbook = Runbook(tmp_path, {}, old=old.port, new=new.port, sentinel=port)
        with Node(sentinels.url) as node:
            node.wait_for(20)
            runbook(BEGIN)
            for block in range(2):
                runbook("By a failover behind Sentinel", block, **{" -p 26379": ""})
            node.wait_for(20)
            wait_until(lambda: sentinels.named() == {new.port}, "the Sentinels")
            wait_until(lambda: role_of(old) == "slave", "the old master")
            node.wait_for(20)
        assert live(new.url, node.kept) == [True] * len(node.kept)
        assert live(new.url, node.ended) == [False] * len(node.ended)


@pytest.mark.cluster
@pytest.mark.usefixtures("redis_cli")
def test_failover_of_a_cluster_loses_no_session_and_no_logout(tmp_path: Path) -> None:
    with (
        RedisCluster(3) as cluster,
        RedisServer(
            port=str(free_port()), cluster_enabled="yes", cluster_port=str(free_port())
        ) as new,
    ):
        port, old = next(iter(cluster.servers.items()))
        runbook = Runbook(tmp_path, {}, old=port, new=new.port)
        with Node(cluster.url) as node:
            node.wait_for(20)
            address = f" 127.0.0.1 {port} {cluster.bus_ports[port]}"
            runbook("By a failover of a Cluster", 0, **{" old 6379": address})
            name = cluster.id(port)
            cluster.wait(lambda each: bool(cluster.run(each, "CLUSTER", "REPLICAS", name)))
            runbook("By a failover of a Cluster", 1)
            node.wait_for(100)
            wait_until(lambda: role_of(old) == "slave", "the old master")
            node.wait_for(20)
        assert live(cluster.url, node.kept) == [True] * len(node.kept)
        assert live(cluster.url, node.ended) == [False] * len(node.ended)


def role_of(server: RedisServer) -> str:
    with server.client() as redis:
        role: str = redis.info("replication")["role"]
    return role


def test_newer_server_reads_the_files_of_an_older_one(start: Start) -> None:
    runbook = start("old", "new", old="Redis", new="Valkey")
    old, new = runbook.machines.values()
    made = create(old.url, *range(20))
    end(old.url, made[0])
    for machine in old, new:
        machine.systemctl("stop")
    runbook.run(f"rm -rf {new.data}/appendonlydir; cp -a {old.data}/appendonlydir {new.data}/")
    new.systemctl("start")
    assert live(new.url, made) == [False] + [True] * 19


def test_older_server_does_not_read_the_files_of_a_newer_one(start: Start) -> None:
    runbook = start("old", "new", old="Redis", new="Valkey")
    old, new = runbook.machines.values()
    create(new.url, 7)
    runbook.run(
        "redis-cli -h new BGREWRITEAOF; until redis-cli -h new INFO persistence | "
        "grep -q aof_rewrite_in_progress:0; do sleep 0.1; done"
    )
    for machine in old, new:
        machine.systemctl("stop")
    runbook.run(f"rm -rf {old.data}/appendonlydir; cp -a {new.data}/appendonlydir {old.data}/")
    with pytest.raises(subprocess.SubprocessError):
        old.systemctl("start", seconds=3)
    assert "file format reading the append only file" in (old.folder / "redis.log").read_text()
