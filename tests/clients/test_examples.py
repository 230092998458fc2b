"""The examples of docs/python.md, docs/faq.md and docs/examples work as they stand."""

import ast
import dataclasses
import inspect
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis import Redis
from starlette.requests import HTTPConnection

import sesiones
from sesiones import Login, Sesion, SessionStore, SyncSessionStore, UserSession
from sesiones.clients.http import SessionClient
from sesiones.clients.starlette import SessionBackend
from sesiones.metrics import CACHE_LOOKUPS, cell
from sesiones.settings import Settings
from tests.harness import asgi
from tests.harness.records import counter_key, index_key
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true, environment
from tests.harness.stores import KEY, open_store

pytestmark = pytest.mark.anyio

UNREACHABLE = "redis://127.0.0.1:1"
DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "python.md").read_text("utf-8")
SECTIONS = re.split(r"^##+ (.+)\n", PAGE, flags=re.MULTILINE)
EXAMPLES = {
    heading: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for heading, section in zip(["Store", *SECTIONS[1::2]], SECTIONS[::2], strict=True)
}
"""The examples of each section of the page."""


async def run(example: str, redis_url: str, url: str = "") -> dict[str, Any]:
    """Run the example on a Redis and a service, and return its global names."""
    source = example.replace("redis://127.0.0.1:6379/0", redis_url)
    source = source.replace("http://127.0.0.1:8000", url or "http://127.0.0.1:1")
    code = compile(source, "python.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "example"}
    awaitable = eval(code, names)
    if awaitable is not None:
        await awaitable
    return names


async def test_example_of_the_store_works(redis_server: RedisServer, redis: "Redis") -> None:
    await run(EXAMPLES["Store"][0], redis_server.url)
    assert redis.exists(counter_key(7))


def test_example_works_as_it_is_pasted_into_the_prompt_of_asyncio(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    """The prompt that the page names."""
    ended = subprocess.run(
        [sys.executable, "-m", "asyncio"],
        input=EXAMPLES["Store"][0] + "\n",
        env=os.environ | {"SESIONES_REDIS_URL": redis_server.url},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    assert redis.exists(counter_key(7))


async def test_example_of_the_near_cache_works(redis_server: RedisServer, redis: "Redis") -> None:
    example = EXAMPLES["A near-cache"][0].replace("timeout(1)", "timeout(20)")  # a busy machine
    names = await run(example, redis_server.url)
    lookups = names["near"].metrics.sums()
    assert lookups[cell(CACHE_LOOKUPS, "hit")] + lookups[cell(CACHE_LOOKUPS, "miss")] > 100
    assert lookups[cell(CACHE_LOOKUPS, "miss")] >= 3


async def test_example_of_a_login_works(redis_server: RedisServer, redis: "Redis") -> None:
    names = await run(EXAMPLES["Login in one act"][0], redis_server.url)
    assert names["chosen"] != names["sesion"].ID_Sesion
    assert redis.zcard(index_key(8)) == 1


async def test_example_of_an_exchange_ends_with_the_old_session(
    redis_server: RedisServer, redis: "Redis"
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "faq.md").read_text("utf-8"), re.DOTALL)
    names = await run(example, redis_server.url)
    async with names["store"] as store:
        for left in 500, 14 * 24 * 3600:
            sesion = await names["exchange"](7, "d", time.time() + left)
            assert left - 10 <= sesion.Fecha_Expiracion - sesion.Fecha_Inicio <= left
            assert await store.find(sesion.Token_Sesion) is not None
        for left, life in (-3, 1), (10**9, 400 * 24 * 3600):
            sesion = await names["exchange"](7, "d", time.time() + left)
            assert sesion.Fecha_Expiracion - sesion.Fecha_Inicio == life


async def test_example_of_the_application_works(redis_server: RedisServer, redis: "Redis") -> None:
    names = await run(EXAMPLES["Starlette"][0], redis_server.url)
    async with names["store"] as store:
        token = (await store.create(7, "d")).Token_Sesion
        reply = await asgi.request(names["app"], "GET", "/yo", [("x-auth-token", token)])
        assert (reply.status, reply.json()) == (200, {"usuario": 7})
        assert (await asgi.request(names["app"], "GET", "/yo")).status == 401


async def test_example_of_a_node_over_http_works() -> None:
    assert isinstance((await run(EXAMPLES["Over HTTP"][0], ""))["backend"], SessionBackend)


async def test_example_of_the_client_works(
    service: Service, redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SESIONES_URL", raising=False)
    monkeypatch.setenv("SESIONES_SERVICE_KEY", KEY)
    await run(EXAMPLES["Over HTTP"][1], "", f"http://127.0.0.1:{service.port}")
    assert redis.exists(counter_key(7))


async def test_example_of_a_cookie_is_read(store: SessionStore) -> None:
    names = await run(EXAMPLES["Cookies"][0], "")
    sesion = await store.create(7, "d")
    header = names["logged_in"](sesion).headers["set-cookie"]
    pair, *attributes = header.split("; ")
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=lax", "Secure"]
    name = pair.partition("=")[0]
    assert f'SessionBackend(store, cookie="{name}")' in PAGE
    connection = HTTPConnection({"type": "http", "headers": [(b"cookie", pair.encode())]})
    _, user = await SessionBackend(store, cookie=name).authenticate(connection)
    assert user.identity == "7"


async def test_example_of_fastapi_works(redis_server: RedisServer, redis: "Redis") -> None:
    names = await run(EXAMPLES["FastAPI"][0], redis_server.url)
    async with open_store(redis_server.url, touch_seconds=60) as store:  # no slide
        app = names["create_app"](store)
        sesion = await store.create(7, "d")
        caller = [("x-auth-token", sesion.Token_Sesion)]
        shown = (await asgi.request(app, "GET", "/yo", caller)).json()
        assert shown == {k: v for k, v in sesion._asdict().items() if k != "Token_Sesion"}
        listed = (await asgi.request(app, "GET", "/dispositivos", caller)).json()
        assert listed == [each.to_dict() for each in await list_of(store, sesion)]
        cookie = [("cookie", f"sesion={sesion.Token_Sesion}")]
        assert (await asgi.request(app, "POST", "/logout", cookie)).status == 204
        assert (await asgi.request(app, "GET", "/yo", caller)).status == 401


async def list_of(store: SessionStore, sesion: Sesion) -> list[UserSession]:
    sessions = await store.list_sessions(sesion.Token_Sesion)
    assert sessions is not None
    return sessions


async def test_example_of_flask_works(redis_server: RedisServer, redis: "Redis") -> None:
    names = await run(EXAMPLES["Synchronous code"][0], redis_server.url)
    client = names["app"].test_client()
    with names["store"] as store:
        token = store.create(7, "d").Token_Sesion
        assert client.get("/yo", headers={"x-auth-token": token}).json == {"usuario": 7}
        assert client.get("/yo").status_code == 401
    gone = await run(EXAMPLES["Synchronous code"][0], UNREACHABLE)
    with gone["store"]:
        reply = gone["app"].test_client().get("/yo", headers={"x-auth-token": token})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


def test_examples_of_the_tests_of_an_application_pass(tmp_path: Path) -> None:
    conftest, tests = EXAMPLES["Tests of your application"]
    (tmp_path / "api.py").write_text(EXAMPLES["FastAPI"][0])
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_api.py").write_text(tests)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )
    count = tests.count("def test_")
    assert count == 3
    assert f"{count} passed" in ended.stdout, ended.stdout


async def test_examples_of_logs_and_metrics_work(store: SessionStore) -> None:
    logs, metrics = EXAMPLES["Logs and metrics"]
    logger = logging.getLogger("sesiones")
    before, logging.root.handlers = logging.root.handlers, [logging.NullHandler()]
    try:
        await run(logs, "")
        assert logger.level == logging.INFO
    finally:
        logging.root.handlers = before
        logger.setLevel(logging.NOTSET)
    names = await run(metrics, "")
    registry = names["REGISTRY"] = CollectorRegistry()
    names["show_metrics_of"](store)
    await store.create(7, "d")
    assert b"\nsesiones_sessions_created_total 1.0\n" in generate_latest(registry)


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text("utf-8")
    for heading, examples in EXAMPLES.items():
        assert not examples or f'EXAMPLES["{heading}"]' in source, heading


def test_documented_methods_are_those_of_store_and_client() -> None:
    methods = re.findall(r"^\| `(\w+)\((.*?)\)`", PAGE, re.MULTILINE)
    for name, arguments in methods:
        for each in SessionStore, SessionClient:
            parameters = [*inspect.signature(getattr(each, name)).parameters]
            named = arguments.replace("sesion", "given") if name == "update" else arguments
            assert [p for p in parameters if p not in ("deep", "fresh", "slide")] == [
                "self",
                *named.split(", "),
            ]
    for other, closing in (SessionClient, "aclose"), (SyncSessionStore, "close"):
        offered = {name for name in vars(other) if not name.startswith("_")} - {closing}
        assert {name for name, _ in methods} == offered


def test_documented_fields_of_a_login_are_those_there_are() -> None:
    section = PAGE.partition("## Login in one act")[2].partition("\n## ")[0]
    fields = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(Login))


def test_defaults_of_from_url_are_those_of_the_settings() -> None:
    settings = Settings()
    parameters = inspect.signature(SessionStore.from_url).parameters
    for name, parameter in parameters.items():
        if name not in ("url", "metrics"):
            setting = "redis_timeout" if name == "timeout_seconds" else name
            assert parameter.default == getattr(settings, setting)


def test_package_is_typed() -> None:
    assert (Path(sesiones.__file__).parent / "py.typed").exists()


# docs/examples/node.py


@contextmanager
def node(redis_url: str) -> Iterator[str]:
    """Run the example as a process; its URL."""
    command = ["-m", "uvicorn", "--app-dir", str(DOCS / "examples"), "node:app", "--port", "0"]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            stderr=log,
            stdout=log,
            env=os.environ | {"SESIONES_REDIS_URL": redis_url},
        )
        try:

            def url() -> str | None:
                match = re.search(r"running on (http://\S+:\d+)", Path(log.name).read_text())
                return match and match[1]

            assert comes_true(lambda: url() is not None, 20), Path(log.name).read_text()
            yield str(url())
        finally:
            process.terminate()
            process.wait(20)


def ask(url: str, token: str | None = None, form: dict[str, str] | None = None) -> tuple[int, Any]:
    headers = {"user-agent": "prueba"} | ({"x-auth-token": token} if token else {})
    body = None if form is None else urlencode(form).encode()
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read()
            return response.status, orjson.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def test_two_nodes_share_their_sessions(redis_server: RedisServer, redis: "Redis") -> None:
    with node(redis_server.url) as one, node(redis_server.url) as two:
        assert ask(f"{one}/login", form={"usuario": "7", "contrasena": "x"}) == (401, None)
        status, made = ask(f"{one}/login", form={"usuario": "7", "contrasena": "secreto"})
        assert status == 200
        token = made["token"]
        for url in one, two:
            assert ask(f"{url}/yo") == (401, None)
            assert ask(f"{url}/yo", token) == (200, {"usuario": 7, "dispositivo": "prueba"})
        assert ask(f"{two}/logout", token, form={}) == (204, None)
        for url in one, two:
            assert ask(f"{url}/yo", token) == (401, None)
