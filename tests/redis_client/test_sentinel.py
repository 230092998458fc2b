"""The master that Sentinel names: failovers, and Sentinels that are wrong, silent or protected."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from sesiones.redis_client import connect, single
from sesiones.redis_client.single import FOLLOW_SECONDS, SentinelMaster
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.fake_redis import Network, simulated
from tests.harness.ports import free_port
from tests.harness.records import session_key
from tests.harness.redis_server import RedisSentinels
from tests.harness.service import comes_true
from tests.harness.stores import available, open_store

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.sentinel]


def run(client: Any, *arguments: str | int) -> Any:
    return client.execute_command(*arguments)


async def test_url_has_the_credentials_of_the_sentinels() -> None:
    with RedisSentinels(replicas=0, sentinels=2) as redis:
        for client in redis.sentinels.values():
            run(
                client,
                *["ACL", "SETUSER", "default", "on", "resetpass", ">p@ss", "~*", "&*", "+@all"],
            )
            run(client, *["ACL", "SETUSER", "ana", "on", "resetpass", ">w:rd", "~*", "&*", "+@all"])
        for options in (
            "?sentinel_password=p%40ss",
            "?sentinel_username=ana&sentinel_password=w%3Ard",
        ):
            async with open_store(redis.url + options) as store:
                await available(lambda s=store: s.create(7, "laptop"), 10)  # type: ignore[misc]
        for options, reason in (
            ("", "NOAUTH"),
            ("?sentinel_password=wrong", "invalid username-password pair"),
            ("?sentinel_username=ana&sentinel_password=p%40ss", "invalid username-password pair"),
        ):
            async with open_store(redis.url + options) as store:
                with pytest.raises(StoreUnavailable, match="no Sentinel names the master") as why:
                    await store.create(7, "laptop")
                assert reason in str(why.value) or "Authentication required" in str(why.value)
                assert "wrong" not in str(why.value)
                assert "p@ss" not in str(why.value)
        for client in redis.sentinels.values():
            run(client, "ACL", "SETUSER", "default", "on", "nopass")


async def test_error_names_the_reason_of_each_sentinel() -> None:
    with RedisSentinels(replicas=0, sentinels=1) as redis:
        (port,) = redis.sentinels
        hosts = f"127.0.0.1:{port},127.0.0.1:1,nowhere.invalid:2"
        async with open_store(f"redis+sentinel://{hosts}/other") as store:
            with pytest.raises(StoreUnavailable) as why:
                await store.create(7, "laptop")
        text = str(why.value)
        assert f"127.0.0.1:{port}: knows no master other" in text
        assert "127.0.0.1:1: " in text
        assert "nowhere.invalid:2: nowhere.invalid cannot be resolved" in text


async def test_blanks_between_the_hosts_are_ignored() -> None:
    with RedisSentinels(replicas=0, sentinels=3) as redis:
        hosts = ", ".join(f"127.0.0.1:{port}" for port in redis.sentinels)
        commands = connect(f"redis+sentinel://{hosts}/mymaster", 5)
        try:
            sentinels = await commands.sentinels()
            assert set(sentinels) == {f"127.0.0.1:{port}" for port in redis.sentinels}
            for execute in sentinels.values():
                assert await execute("PING") == b"PONG"
        finally:
            await commands.aclose()


async def test_sentinel_that_hangs_leaves_time_for_the_request() -> None:
    with (
        RedisSentinels(replicas=0, sentinels=1) as redis,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        (port,) = redis.sentinels
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{port}"
        url = f"redis+sentinel://{hosts}/mymaster"
        async with open_store(url, timeout_seconds=0.5) as store:
            assert (await store.create(7, "laptop")).ID_Usuario == 7


class SlowLookups(asyncio.SelectorEventLoop):
    """Looks names up as uvloop does: what a cancelled task has asked for goes on, and nothing
    retrieves its exception."""

    async def getaddrinfo(self, host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "nowhere.invalid":
            return await super().getaddrinfo(host, *arguments, **options)
        lookup: asyncio.Future[Any] = self.create_future()
        self.call_later(0.25, lookup.set_exception, socket.gaierror(-3, "no answer"))
        await asyncio.wait({lookup})
        return lookup.result()


@pytest.mark.slow
def test_unresolvable_name_is_one_line_of_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a Sentinel's, which is asked again and again, nor a server's. A lookup takes longer
    than the connection may."""
    monkeypatch.setattr(single, "FOLLOW_SECONDS", 0.2)
    caplog.set_level(logging.INFO)
    complaints: list[dict[str, Any]] = []

    async def use(store: SessionStore, seconds: float) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(StoreUnavailable):
                await store.create(7, "laptop")
            await asyncio.sleep(0.05)
        await store.aclose()
        await asyncio.sleep(0.3)  # until the last lookup has failed
        gc.collect()
        await asyncio.sleep(0)

    with RedisSentinels(replicas=0, sentinels=2) as redis:
        url = redis.url.replace("://", "://nowhere.invalid:1,", 1)
        for each in url, "redis://nowhere.invalid:1", "redis+cluster://nowhere.invalid:1":
            caplog.clear()
            with asyncio.Runner(loop_factory=SlowLookups) as runner:
                runner.run(use(open_store(each, timeout_seconds=0.1), 0.8))
            assert complaints == []
            errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
            assert len(errors) <= 1, errors


# The master is replaced.


async def test_sessions_survive_two_failovers() -> None:
    with (
        RedisSentinels(replicas=1, sentinels=1) as redis,
        socket.create_server(("127.0.0.1", 0)) as deaf,
    ):
        (first, second), (one, two) = redis.servers, redis.clients.values()
        ((sentinel_port, watch),) = redis.sentinels.items()
        # The first of the two Sentinels in the URL never answers; then the other is asked.
        silent = f"127.0.0.1:{deaf.getsockname()[1]}"
        url = f"redis+sentinel://{silent},127.0.0.1:{sentinel_port}/mymaster"
        async with open_store(url, timeout_seconds=0.25) as store:
            session = await available(lambda: store.create(7, "laptop"))
            token = session.Token_Sesion
            assert len(one.keys("*:h:*")) == 1
            assert comes_true(lambda: redis.replicated(first), 10)

            # The master is demoted, but its connections stay open. (Sentinel would wait 8 s.)
            assert comes_true(lambda: failed_over(watch, first), 10)
            assert comes_true(lambda: two.info("replication")["role"] == "master", 10)
            one.replicaof("127.0.0.1", str(second))
            assert (await available(lambda: store.find(token))).ID_Sesion == session.ID_Sesion
            await available(lambda: store.probe(5))
            other = (await available(lambda: store.create(7, "phone"))).Token_Sesion
            assert len(two.keys("*:h:*")) == 2
            assert comes_true(lambda: redis.replicated(second), 10)

            # The new master dies.
            redis.servers[second].stop(signal.SIGKILL)
            assert comes_true(lambda: one.info("replication")["role"] == "master", 10)
            assert (await available(lambda: store.find(other))).Dispositivo == "phone"
            assert await store.end(token, other) == 1
            assert await store.find(other) is None
        # Sentinel's connection to the test is left.
        assert comes_true(lambda: len(watch.client_list()) == 1, 1)


async def test_replaced_master_that_still_answers_is_left() -> None:
    """Sentinel would tell the old master after 8 s only, and leaves its connections open."""
    with RedisSentinels(replicas=2, sentinels=3) as redis:
        (old,) = redis.named()
        async with (
            open_store(redis.url, timeout_seconds=0.25) as store,
            open_store(redis.url, timeout_seconds=0.25) as other,
        ):
            token = (await available(lambda: store.create(7, "laptop"))).Token_Sesion
            assert (await available(lambda: other.find(token))).ID_Usuario == 7
            assert comes_true(lambda: redis.replicated(old), 10)
            watch = next(iter(redis.sentinels.values()))
            assert await asyncio.to_thread(comes_true, lambda: failed_over(watch, old), 10)
            assert await asyncio.to_thread(comes_true, lambda: not redis.named() & {old}, 10)
            await asyncio.sleep(1)
            assert redis.clients[old].info("replication")["role"] == "master"
            assert await available(lambda: store.end(token, token)) == 1
            assert await available(lambda: other.find(token)) is None
            assert redis.clients[old].exists(session_key(token))


async def test_checks_are_answered_while_most_sentinels_confirm_a_master_that_refuses_writes() -> (
    None
):
    """A majority of the Sentinels has to say that it is still the master."""
    with (
        RedisSentinels(replicas=0, sentinels=1) as redis,
        socket.create_server(("127.0.0.1", 0)) as deaf,
    ):
        (master,) = redis.clients.values()
        ((sentinel_port, watch),) = redis.sentinels.items()
        # All that docs/acl.conf gives the service at a Sentinel.
        run(watch, "ACL", "SETUSER", "admin", "on", "nopass", "~*", "&*", "+@all")
        run(watch, "AUTH", "admin", "x")
        allowed = ("+sentinel|get-master-addr-by-name",)
        run(watch, "ACL", "SETUSER", "default", "reset", "on", "nopass", *allowed)
        at = f"127.0.0.1:{sentinel_port}"
        silent = f"127.0.0.1:{deaf.getsockname()[1]}"
        async with (
            open_store(f"redis+sentinel://{at}/mymaster", timeout_seconds=1) as store,
            open_store(f"redis+sentinel://{at},{silent}/mymaster", timeout_seconds=0.25) as cut_off,
            open_store(
                f"redis+sentinel://{at},{at},{silent}/mymaster", timeout_seconds=0.25
            ) as most,
        ):
            stores = store, cut_off, most
            token = (await available(lambda: store.create(7, "laptop"))).Token_Sesion
            for each in stores:
                assert await each.find(token) is not None
            master.config_set("min-replicas-to-write", 1)
            assert await store.find(token) is not None
            assert await most.find(token) is not None
            with pytest.raises(StoreUnavailable):
                await cut_off.find(token)
            for rule in allowed:
                run(watch, "ACL", "SETUSER", "default", rule.replace("+", "-"))
                async with open_store(
                    f"redis+sentinel://{at}/mymaster", timeout_seconds=1
                ) as hindered:
                    with pytest.raises(StoreUnavailable):
                        await hindered.find(token)
                run(watch, "ACL", "SETUSER", "default", rule)

            run(watch, "SENTINEL", "REMOVE", "mymaster")
            run(watch, "SENTINEL", "MONITOR", "mymaster", "127.0.0.1", free_port(), 1)
            for each in stores:
                with pytest.raises(StoreUnavailable):
                    await each.find(token)
            master.config_set("min-replicas-to-write", 0)


def failed_over(watch: "Redis", master: int) -> bool:
    """Whether Sentinel names another master. If it does not, it is asked for a failover: it refuses
    that until it knows its replicas well enough, and gives up a failover that is slow."""
    if int(run(watch, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1]) != master:
        return True
    with contextlib.suppress(ResponseError):  # NOGOODSLAVE, INPROG
        run(watch, "SENTINEL", "FAILOVER", "mymaster")
    return False


def test_replaced_master_is_left_after_every_task_of_the_loop_was_cancelled() -> None:
    """A program may cancel all of its tasks and go on."""

    async def follow(network: Network, commands: SentinelMaster) -> None:
        assert await commands.execute("ECHO", 1, "{a}") == b"1"
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(FOLLOW_SECONDS)
        network.master = 1
        await asyncio.sleep(2 * FOLLOW_SECONDS)
        assert await commands.execute("ECHO", 2, "{a}") == b"2"
        assert network.nodes[1].accepted == 1

    simulated(follow, "sentinel_master")()


@pytest.mark.parametrize("other_is_named", [False, True])
def test_answer_of_an_unconfirmed_master_drops_a_replaced_connection_alone(
    other_is_named: bool,
) -> None:
    """Each list of sessions asks for that. Where too few Sentinels answer, checks and writes, which
    do not ask, go on over the connection."""

    async def ask(network: Network, commands: SentinelMaster) -> None:
        assert await commands.execute("ECHO", 1, "{a}") == b"1"
        if other_is_named:
            network.master = 1
        else:
            for sentinel in network.sentinels[1:]:
                sentinel.stop()
        with pytest.raises(RedisError):
            await commands.execute_on_master("ECHO", 2, "{a}")
        assert network.nodes[0].wires[-1].is_closing() == other_is_named
        assert await commands.execute("ECHO", 3, "{a}") == b"3"
        assert network.nodes[1].accepted == other_is_named

    simulated(ask, "sentinel_master")()


# What answers is no Sentinel.


@pytest.mark.parametrize("reply", ["+OK", ":1", "*0", "*1\r\n*2\r\n$4\r\nname\r\n$1\r\nx"])
@pytest.mark.parametrize("position", [0, 2])
def test_one_of_three_sentinels_that_is_none_changes_nothing(reply: str, position: int) -> None:
    """It is the first or the last to be asked. The other two are a majority, which finds and
    follows the master."""

    async def follow(network: Network, commands: SentinelMaster) -> None:
        network.sentinels[position].answer = lambda *_: bytearray(f"{reply}\r\n".encode())
        old, new = network.nodes
        assert await commands.execute("ECHO", 1, "{a}") == b"1"
        await asyncio.sleep(3 * FOLLOW_SECONDS)
        assert (old.accepted, new.accepted) == (1, 0)
        network.master = 1
        await asyncio.sleep(2 * FOLLOW_SECONDS)
        assert await commands.execute("ECHO", 2, "{a}") == b"2"
        assert (old.accepted, new.accepted) == (1, 1)

    simulated(follow, "sentinel_master")()
