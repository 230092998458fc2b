"""A service that is paused, a connection that is lost without a sign, and writes that Redis holds
back: checks are answered all the same."""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack

import orjson
import pytest
from redis import Redis

from tests.harness.client import Client
from tests.harness.faults import hung
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisServer
from tests.harness.service import Service
from tests.harness.stores import open_store
from tests.redis_client.relays import relays_before

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.redis]

TIMEOUT_SECONDS = 0.25
CALLERS = 32


async def test_paused_service_gives_up_no_check_whose_reply_has_arrived(
    deployment_url: str,
) -> None:
    statuses: Counter[int] = Counter()
    with Service(
        SESIONES_REDIS_URL=deployment_url, SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS)
    ) as service:
        client = Client(service.port)
        tokens = [await client.create(user) for user in range(CALLERS)]
        checking = True

        async def check(token: str) -> None:
            while checking:
                reply = await client.ask("GET", "/sesiones/self", token)
                statuses[reply.status] += 1
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(check(token)) for token in tokens]
        for seconds in (0.3, 1.0) * 4:
            await asyncio.sleep(0.2)
            with hung(service):
                await asyncio.sleep(seconds)
        await asyncio.sleep(0.3)
        checking = False
        await asyncio.gather(*tasks)
        client.close()
        assert statuses.keys() == {200}, (statuses, service.log)
    assert statuses[200] > 10 * CALLERS


async def test_first_check_on_a_connection_lost_without_a_sign_is_answered(
    deployment_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relays_before(deployment_url, monkeypatch) as (through, relays):
        async with open_store(through, timeout_seconds=TIMEOUT_SECONDS) as store:
            made = [await store.create(user, "laptop") for user in range(20)]
            for round_ in range(6):
                for sesion in made:  # every node of a Cluster is connected
                    assert await store.find(sesion.Token_Sesion) is not None
                for relay in relays.values():
                    relay.swallow()
                begun = time.monotonic()
                found = await store.find(made[round_].Token_Sesion)
                assert found is not None
                assert found.ID_Usuario == made[round_].ID_Usuario
                assert time.monotonic() - begun < TIMEOUT_SECONDS + 0.1


@pytest.mark.parametrize("kind", ["server", "cluster"])
async def test_while_writes_are_paused_checks_go_on_and_writes_are_unavailable(kind: str) -> None:
    with ExitStack() as stack:
        if kind == "server":
            server = stack.enter_context(RedisServer(port=str(free_port())))
            url, ports = f"redis://127.0.0.1:{server.port}", [server.port]
        else:
            cluster = stack.enter_context(RedisCluster(3))
            url, ports = cluster.url, list(cluster.servers)
        service = stack.enter_context(
            Service(
                SESIONES_REDIS_URL=url,
                SESIONES_REDIS_TIMEOUT=str(TIMEOUT_SECONDS),
                SESIONES_TOUCH_SECONDS="0",
            )
        )
        client = Client(service.port)
        tokens = [await client.create(user) for user in range(30)]
        ended = await client.create(99)
        assert await client.log_out(ended) == 200
        clients = [stack.enter_context(Redis(port=port)) for port in ports]
        for each in clients:
            each.execute_command("CLIENT", "PAUSE", 2000, "WRITE")
        paused = time.monotonic()
        times: list[float] = []
        while time.monotonic() < paused + 1.5:
            begun = time.monotonic()
            replies = await asyncio.gather(
                *(client.ask("GET", "/sesiones/self", token) for token in tokens),
                client.ask("GET", "/sesiones/self", ended),
            )
            times.append(time.monotonic() - begun)
            assert [reply.status for reply in replies] == [200] * len(tokens) + [401]
            await asyncio.sleep(0.02)
        activity = orjson.loads(replies[1].body)["Ultima_Actividad"]
        # But for the first batch, and those that look once a second whether writes are back.
        assert len([each for each in times if each > 0.06]) <= 3, times
        assert max(times) < TIMEOUT_SECONDS + 0.1
        path = f"/sesiones/logout?Token_Sesion={tokens[0]}"
        writes = await asyncio.gather(
            client.ask("DELETE", path, tokens[0]),
            client.ask("POST", "/sesiones", body={"ID_Usuario": 7, "Dispositivo": "x"}),
        )
        assert time.monotonic() < paused + 2
        assert [reply.status for reply in writes] == [503, 503]
        for each in clients:
            each.execute_command("CLIENT", "UNPAUSE")
        # Checks slide again: until then they were answered without.
        slid, deadline = activity, time.monotonic() + 4
        while slid == activity:
            assert time.monotonic() < deadline
            reply = await client.ask("GET", "/sesiones/self", tokens[1])
            slid = orjson.loads(reply.body)["Ultima_Actividad"]
            await asyncio.sleep(0.05)
        assert slid > activity
        client.close()
