"""Metrics: every operation is counted, once, whichever worker does it and whichever is asked."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from sesiones import tokens
from sesiones.http.operations import Exposition
from sesiones.metrics import SECONDS, Metrics
from sesiones.sesion import StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.metrics import counted
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, children, comes_true
from tests.harness.stores import KEY, open_store, service_variables

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[1] / "docs"
SERVICE = {"Authorization": f"Bearer {KEY}"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

Samples = dict[str, float]


def samples(text: str) -> Samples:
    """By name and labels, as Prometheus writes them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scrape(service: Service) -> Samples:
    reply = service.request("GET", "/metrics")
    assert reply.status == 200
    return samples(reply.body.decode())


# What is counted


async def test_each_operation_is_counted_once(redis_server: RedisServer, redis: "Redis") -> None:
    opened = open_store(redis_server.url, max_per_user=3, touch_seconds=0)
    async with aclosing(opened) as store:
        made = [await store.create(7, "d") for _ in range(4)]  # the fourth ends one of the others
        asked = [sesion.Token_Sesion for sesion in made[:3]]
        found = await asyncio.gather(*map(store.find, (*asked, tokens.make(7))))
        second, third = (sesion.Token_Sesion for sesion in found if sesion is not None)
        assert await store.update(made[3]) is not None
        assert await store.end(second, second) == 1
        assert await store.end(second, second) != 1
        assert await store.end_all(third, "") == 2
        one, two, three = [await store.create(8, "d") for _ in range(3)]
        assert await store.update(one._replace(Dispositivo="e")) is not None
        listed = await store.list_sessions(one.Token_Sesion)
        assert listed is not None
        assert len(listed) == 3
        assert await store.end_one(one.Token_Sesion, two.ID_Sesion) == 1
        assert await store.end_others(one.Token_Sesion) == 1
        assert len(await store.sessions(8)) == 1
        assert await store.end_user(8) == 1
        await store.revoke((await store.create(8, "d")).Token_Sesion)
        await store.revoke(three.Token_Sesion)
        assert counted(store.metrics) == {
            "sesiones_checks_total['valid']": 5,
            "sesiones_checks_total['invalid']": 2,
            "sesiones_slides_total[]": 5,
            "sesiones_sessions_created_total[]": 8,
            "sesiones_sessions_updated_total[]": 1,
            "sesiones_sessions_ended_total['limit']": 1,
            "sesiones_sessions_ended_total['logout']": 2,
            "sesiones_sessions_ended_total['logout_all']": 2,
            "sesiones_sessions_ended_total['id']": 1,
            "sesiones_sessions_ended_total['others']": 1,
            "sesiones_sessions_ended_total['operator']": 1,
        }
        for family in Exposition(store.metrics).collect():
            for sample in family.samples:
                if sample.name == "sesiones_operation_seconds_count":
                    expected = {"check": 7, "create": 8, "update": 2, "logout": 2, "logout_all": 1}
                    expected |= {"list": 2, "end_one": 1, "end_others": 1, "end_user": 1}
                    expected |= {"revoke": 2}
                    assert sample.value == expected[sample.labels["operation"]]
                elif sample.name == "sesiones_redis_seconds_count":
                    assert sample.value == 23  # of what it has ended, a store knows itself


async def test_inactive_session_is_an_invalid_check(store: SessionStore) -> None:
    sesion = await store.create(7, "d")
    await store.update(sesion._replace(Estado_Sesion=0))
    assert await store.find(sesion.Token_Sesion) is None
    assert counted(store.metrics)["sesiones_checks_total['invalid']"] == 1


async def test_timeout_and_lost_connection_are_counted_as_errors() -> None:
    with RedisServer() as server:
        async with aclosing(open_store(server.url, timeout_seconds=0.2)) as store:
            await store.create(7, "d")
            server.process.send_signal(signal.SIGSTOP)
            asked = [asyncio.create_task(store.find(tokens.make(7))) for _ in range(5)]
            await asyncio.sleep(0.05)
            assert counted(store.metrics)["sesiones_operations_in_flight['check']"] == 5
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(answer, StoreUnavailable)
            seen = counted(store.metrics)
            assert seen["sesiones_checks_total['unavailable']"] == 5
            assert seen["sesiones_redis_errors_total['timeout']"] == 1
            assert "sesiones_operations_in_flight['check']" not in seen
            server.stop(signal.SIGKILL)
            with pytest.raises(StoreUnavailable):
                await store.create(7, "d")
            assert counted(store.metrics)["sesiones_redis_errors_total['connection']"] == 1


def test_latencies_of_a_batch_are_counted_one_by_one() -> None:
    """Those in one bucket and those of many, and their sum."""
    for spread in 0.0, 0.02:
        metrics = Metrics()
        now = time.monotonic()
        asked = [now - 0.03 + index * spread / 10 for index in range(10)]
        metrics.checked(asked, [None] * 10)
        (family,) = (
            f for f in Exposition(metrics).collect() if f.name == "sesiones_operation_seconds"
        )
        seen = {
            sample.labels.get("le", sample.name): sample.value
            for sample in family.samples
            if sample.labels["operation"] == "check"
        }
        for bound in SECONDS:
            expected = sum(now - moment <= bound for moment in asked)
            assert seen[str(bound)] == pytest.approx(expected, abs=1)  # a little later than now
        assert seen["+Inf"] == seen["sesiones_operation_seconds_count"] == 10
        total = sum(now - moment for moment in asked)
        assert seen["sesiones_operation_seconds_sum"] == pytest.approx(total, abs=0.02)


# The service


@pytest.fixture(scope="module", params=[("fast", "1"), ("httptools", "1"), ("fast", "2")])
def counting(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Service]:
    http, workers = request.param
    with Service(
        "--http", http, "--workers", workers, **service_variables(redis_server.url)
    ) as service:
        yield service


def test_each_check_counts_once_whichever_worker_answers(counting: Service) -> None:
    token = counting.new_session(4821371)["Token_Sesion"]
    before = scrape(counting)
    for _ in range(10):  # each on a connection of its own: of any worker
        for path in "/sesiones/self", "/sesiones/verificar":
            assert counting.request("GET", path, {"x-auth-token": token}).status == 200
            counting.request("GET", path, {"x-auth-token": tokens.make(7)})
            counting.request("GET", path, {"x-auth-token": "x"})
            counting.request("GET", path)
    for path in "/livez", "/readyz", "/healthz", "/metrics", "/", "/sesion":
        counting.request("GET", path)
    after = scrape(counting)
    outcomes = {"valid": 20, "invalid": 20, "missing": 40, "unavailable": 0}
    for outcome, count in outcomes.items():
        name = f'sesiones_checks_total{{outcome="{outcome}"}}'
        assert after[name] - before[name] == count
    for name in (
        'sesiones_operation_seconds_count{operation="check"}',
        "sesiones_check_batch_size_sum",
    ):
        assert after[name] - before[name] == 40
    assert after["sesiones_redis_seconds_count"] - before["sesiones_redis_seconds_count"] == 40
    assert after['sesiones_operations_in_flight{operation="check"}'] == 0


def test_series_name_no_token_and_no_user(counting: Service) -> None:
    token = counting.new_session(4821371)["Token_Sesion"]
    counting.request("DELETE", f"/sesiones/logout?Token_Sesion={token}", {"x-auth-token": token})
    text = counting.request("GET", "/metrics").body.decode()
    assert not re.search(r"\bses_", text)
    assert "4821371" not in text
    allowed = {"outcome", "operation", "reason", "status", "le", "version"}
    assert set(re.findall(r'(\w+)="', text)) == allowed


def test_metrics_are_shown_in_both_formats_of_prometheus(counting: Service) -> None:
    reply = counting.request("GET", "/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    head = counting.request("HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    reply = counting.request("GET", "/metrics", accept)
    assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert reply.body.endswith(b"# EOF\n")
    assert counting.request("POST", "/metrics").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "accept",
    ["text/plain;version=a.b", "application/openmetrics-text;version=abc", "*/*;q=x", "\xff", ""],
)
def test_unknown_accept_header_gets_the_text_format(counting: Service, accept: str) -> None:
    reply = counting.request("GET", "/metrics", {"Accept": accept})
    assert reply.status == 200
    assert b"sesiones_checks_total" in reply.body


def test_counts_survive_the_death_of_a_worker(redis_server: RedisServer) -> None:
    """No count goes back, nothing of the dead one is left in flight, and the one in its place is
    counted too."""
    with Service("--workers", "2", SESIONES_REDIS_URL=redis_server.url) as service:
        name = 'sesiones_checks_total{outcome="invalid"}'
        for round_ in range(3):
            # Both are up, those that replace dead ones too.
            up = 2 + round_
            started = comes_true(lambda up=up: service.log.count("startup complete") == up, 10)  # type: ignore[misc]
            assert started, service.log
            for _ in range(20):
                service.request("GET", "/sesiones/self", {"x-auth-token": tokens.make(7)})
            for _ in range(6):  # whichever worker is asked
                assert scrape(service)[name] == 20 * (round_ + 1)
            workers = [pid for pid in children(service.process.pid) if is_worker(pid)]
            assert len(workers) == 2
            os.kill(workers[round_ % 2], signal.SIGKILL)
            assert comes_true(lambda n=up: service.log.count("died") == n - 1, 10)  # type: ignore[misc]
        seen = scrape(service)
        assert seen[name] == 60
        assert not any(value for key, value in seen.items() if "in_flight" in key)


def is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


# What is made of it


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:sesiones|process)_\w+", text))


def shown_names(service: Service) -> set[str]:
    return {name.partition("{")[0] for name in scrape(service)}


def family_names(service: Service) -> set[str]:
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown_names(service)}


def queries() -> list[str]:
    """Of the dashboard, with values for Grafana's variables."""
    dashboard = orjson.loads((DOCS / "grafana.json").read_bytes())
    return [
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def test_docs_name_every_metric_and_no_other(service: Service) -> None:
    table = (DOCS / "operate.md").read_text("utf-8").partition("\n## Metrics\n")[2]
    assert metric_names(table.partition("\n## ")[0]) == family_names(service)


def test_dashboard_shows_metrics_that_exist(service: Service) -> None:
    shown = shown_names(service)
    assert len(queries()) > 10
    for query in queries():
        assert metric_names(query)
        assert metric_names(query) <= shown


def test_alerts_watch_metrics_that_exist(service: Service) -> None:
    watched = metric_names((DOCS / "alerts.yml").read_text("utf-8"))
    assert len(watched) > 3
    assert watched <= shown_names(service) | family_names(service)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool: apt-get install prometheus")
def test_promtool_accepts_rules_queries_and_metrics(service: Service, tmp_path: Path) -> None:
    rules = {"groups": [{"name": "g", "rules": [{"record": "x", "expr": q} for q in queries()]}]}
    (tmp_path / "dashboard.json").write_bytes(orjson.dumps(rules))  # JSON is YAML
    text = service.request("GET", "/metrics").body
    for command, given in (
        (["rules", str(DOCS / "alerts.yml"), str(tmp_path / "dashboard.json")], b""),
        (["metrics"], text),
    ):
        done = subprocess.run(["promtool", "check", *command], input=given, capture_output=True)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
