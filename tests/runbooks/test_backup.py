"""Backup, restore, and a flush that is undone."""

import pytest
from redis import Redis

from tests.runbooks.machines import Runbook, Start, now
from tests.runbooks.sessions import create, end, live

pytestmark = [pytest.mark.redis, pytest.mark.slow]

KINDS = ["Redis", "Valkey"]


def logged_out_since(runbook: Runbook, url: str, back_up: tuple[str, int]) -> list[bool]:
    """Back up between two logouts, and return which of four sessions live after that: one that was
    there, one that ended before the backup, one that ended after it, one that began after it."""
    made = create(url, 7, 8, 9)
    end(url, made[1])
    runbook(*back_up)
    end(url, made[2])
    made += create(url, 10)
    assert live(url, made) == [True, False, False, True]
    if back_up == ("Backup", 0):
        runbook("Restore", 0)
    else:
        runbook("Restore", 1)
    return live(url, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("back_up", [("Backup", 0), ("Backup", 1)], ids=["files", "snapshot"])
def test_restored_backup_has_its_sessions_and_undoes_the_logouts_since(
    start: Start, kind: str, back_up: tuple[str, int]
) -> None:
    runbook = start("redis", redis=kind)
    machine = runbook.machines["redis"]
    if back_up[1]:
        (runbook.folder / "backups" / "redis").mkdir(parents=True)
    assert logged_out_since(runbook, machine.url, back_up) == [True, False, True, False]
    # The next restart finds the same, and what has been written since.
    made = create(machine.url, 11)
    machine.systemctl("stop")
    machine.systemctl("start")
    with machine.client() as redis:
        assert redis.config_get("appendonly") == {"appendonly": "yes"}
    assert live(machine.url, made) == [True]
    # So the sessions of the backup end, and those that began since do not.
    moment = now()
    later = create(machine.url, 12)
    runbook("Restore", 3, **{"2026-11-27T09:00:00Z": moment})
    assert live(machine.url, [*made, *later]) == [False, True]
    runbook("Restore", 2)
    assert live(machine.url, later) == [False]


def test_snapshot_under_an_append_only_configuration_loads_no_key(start: Start) -> None:
    runbook = start("redis")
    machine = runbook.machines["redis"]
    create(machine.url, 7)
    runbook.run("mkdir -p /var/backups/redis\nredis-cli --rdb /var/backups/redis/dump.rdb")
    machine.systemctl("stop")
    runbook.run(
        "rm -rf /var/lib/redis/appendonlydir; cp /var/backups/redis/dump.rdb /var/lib/redis/"
    )
    machine.systemctl("start")
    with machine.client() as redis:
        assert redis.dbsize() == 0


def test_empty_redis_gives_no_number_twice(start: Start) -> None:
    machine = start("redis").machines["redis"]
    numbers: list[int] = []
    for _ in range(3):
        made = create(machine.url, *[7] * 5)
        assert min(sesion.ID_Sesion for sesion in made) > max(numbers, default=0)
        numbers += [sesion.ID_Sesion for sesion in made]
        with machine.client() as redis:
            redis.flushall()
        now()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "flush", [["FLUSHALL"], ["flushdb"], ["FLUSHDB", "ASYNC"], ["flushall", "sync"]], ids="-".join
)
def test_flush_is_undone_and_nothing_else(start: Start, kind: str, flush: list[str]) -> None:
    runbook = start("redis", redis=kind)
    machine = runbook.machines["redis"]
    made = create(machine.url, *range(7, 20))
    end(machine.url, made[0])
    with machine.client() as redis:
        execute(redis, *flush)
    made += create(machine.url, 30, 7, 8)
    end(machine.url, made[-3])
    assert live(machine.url, made).count(True) == 2
    runbook("Undo a flush")
    assert live(machine.url, made) == [False, *[True] * 12, False, True, True]
    assert len({sesion.ID_Sesion for sesion in made + create(machine.url, *range(7, 20))}) == 29


def execute(redis: "Redis", *words: str) -> None:
    redis.execute_command(*words)  # type: ignore[no-untyped-call]
