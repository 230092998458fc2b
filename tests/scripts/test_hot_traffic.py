"""tests/harness/hot_traffic.py tells how late a stale answer is, and which answers are wrong."""

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from sesiones import tokens
from tests.harness.client import Client
from tests.harness.hot_traffic import (
    ENDED,
    WRONG_401,
    WRONG_SESSION,
    Change,
    HotSession,
    HotTraffic,
    HotUser,
)
from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply, Service

pytestmark = pytest.mark.anyio

OWN, OTHER = 1, 2


@pytest.fixture
def session() -> HotSession:
    return HotSession(tokens.make(7), 4103, HotUser(7), {})


@pytest.fixture
def traffic() -> Iterator[HotTraffic]:
    traffic = HotTraffic([OWN, OTHER], users=1)
    yield traffic
    traffic.close()


async def check(
    traffic: HotTraffic,
    session: HotSession,
    port: int,
    reply: Reply,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(*_: Any, **__: Any) -> Reply:
        return reply

    monkeypatch.setattr(Client, "ask", ask)
    await traffic._check(Client(port), session)


def shows(session: HotSession, version: int = 0) -> Reply:
    answer = {"Token_Sesion": session.token, "Dispositivo": f"v{version}"}
    return Reply(200, {}, orjson.dumps(answer))


REFUSED = Reply(401, {}, b"")


async def test_answer_from_before_a_change_is_late_since_its_acknowledgement(
    traffic: HotTraffic, session: HotSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    session.version = 2
    session.changes += [Change(now - 2, OWN, 1), Change(now - 1, OWN, 2)]
    await check(traffic, session, OTHER, shows(session, 2), monkeypatch)
    assert traffic.seen.stale == 0
    await check(traffic, session, OTHER, shows(session, 1), monkeypatch)
    assert (traffic.seen.stale, traffic.seen.own_stale) == (1, 0)
    assert traffic.seen.latest_seconds == pytest.approx(1, abs=0.5)
    await check(traffic, session, OWN, shows(session, 1), monkeypatch)
    assert (traffic.seen.stale, traffic.seen.own_stale) == (2, 1)


async def test_ended_session_that_is_accepted_is_stale(
    traffic: HotTraffic, session: HotSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.may_end = True
    await check(traffic, session, OTHER, shows(session), monkeypatch)
    await check(traffic, session, OTHER, REFUSED, monkeypatch)
    assert traffic.seen.stale == 0  # not acknowledged yet
    session.changes.append(Change(time.monotonic(), OWN, ENDED))
    await check(traffic, session, OTHER, shows(session), monkeypatch)
    assert (traffic.seen.stale, traffic.seen.own_stale) == (1, 0)
    assert not traffic.seen.wrong.total()


async def test_expired_session_that_is_accepted_counts_for_every_node(
    traffic: HotTraffic, session: HotSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.expires = time.time() - 0.001
    await check(traffic, session, OTHER, shows(session), monkeypatch)
    assert traffic.seen.own_stale == 1
    await check(traffic, session, OTHER, REFUSED, monkeypatch)
    assert not traffic.seen.wrong.total()


async def test_live_session_that_is_refused_is_wrong_unless_it_may_be_inactive(
    traffic: HotTraffic, session: HotSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check(traffic, session, OTHER, REFUSED, monkeypatch)
    assert traffic.seen.wrong[WRONG_401] == 1
    session.version = 2  # was sent, and makes it inactive
    await check(traffic, session, OTHER, REFUSED, monkeypatch)
    assert traffic.seen.wrong[WRONG_401] == 1


async def test_answer_about_another_session_is_wrong(
    traffic: HotTraffic, session: HotSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = HotSession(tokens.make(7), 8199, session.user, {})
    await check(traffic, session, OTHER, shows(other), monkeypatch)
    assert traffic.seen.wrong[WRONG_SESSION] == 1


@pytest.mark.redis
async def test_every_kind_of_write_is_played_and_a_sound_service_is_never_stale_without_a_cache(
    redis_server: RedisServer,
) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        traffic = HotTraffic([service.port], users=10)
        await traffic.run(rate=100, writes=300, seconds=1)
        traffic.close()
    answered = {what.split()[0] for what in traffic.seen.statuses}
    assert {"check", "create", "update", "logout", "operator"} <= answered
    assert (traffic.seen.stale, traffic.seen.wrong.total()) == (0, 0)
