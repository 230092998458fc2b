"""A redis+sentinel:// URL of which some Sentinels are wrong, silent or protected."""

import asyncio
import contextlib
import gc
import logging
import socket
from typing import Any

import pytest

from sesiones.redis_client import connect
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.redis_server import RedisSentinels
from tests.harness.stores import available, open_store

pytestmark = pytest.mark.redis


def run(client: Any, *arguments: str | int) -> Any:
    return client.execute_command(*arguments)


@pytest.mark.anyio
async def test_sentinels_that_ask_for_a_password_get_it_from_the_url() -> None:
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


@pytest.mark.anyio
async def test_the_reason_of_each_sentinel_is_in_the_error() -> None:
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


@pytest.mark.anyio
async def test_blanks_between_the_hosts_do_not_lose_a_sentinel() -> None:
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


@pytest.mark.anyio
async def test_a_sentinel_that_hangs_does_not_take_the_time_of_a_request() -> None:
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
        self.call_later(0.5, lookup.set_exception, socket.gaierror(-3, "no answer"))
        await asyncio.wait({lookup})
        return lookup.result()


def test_a_name_that_cannot_be_resolved_is_no_noise_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither a Sentinel's, which is asked twice a second, nor a server's."""
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
        await asyncio.sleep(0.6)
        gc.collect()
        await asyncio.sleep(0)

    with RedisSentinels(replicas=0, sentinels=2) as redis:
        url = redis.url.replace("://", "://nowhere.invalid:1,", 1)
        for each in url, "redis://nowhere.invalid:1", "redis+cluster://nowhere.invalid:1":
            caplog.clear()
            with asyncio.Runner(loop_factory=SlowLookups) as runner:
                runner.run(use(SessionStore.from_url(each), 1.5))
            assert complaints == []
            errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
            assert len(errors) <= 1, errors
