"""The examples of docs/python.md and of docs/examples work as they stand."""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from redis import Redis

import sesiones
from sesiones import Login, SessionStore
from sesiones.clients.http import SessionClient
from sesiones.clients.starlette import SessionBackend
from sesiones.settings import Settings
from tests.harness import asgi
from tests.harness.records import counter_key, index_key
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.stores import KEY

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "python.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


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
    await run(EXAMPLES[0], redis_server.url)
    assert redis.exists(counter_key(7))


async def test_example_of_a_login_works(redis_server: RedisServer, redis: "Redis") -> None:
    names = await run(EXAMPLES[1], redis_server.url)
    assert names["chosen"] != names["sesion"].ID_Sesion
    assert redis.zcard(index_key(8)) == 1


async def test_example_of_the_application_works(redis_server: RedisServer, redis: "Redis") -> None:
    names = await run(EXAMPLES[2], redis_server.url)
    async with names["store"] as store:
        token = (await store.create(7, "d")).Token_Sesion
        reply = await asgi.request(names["app"], "GET", "/yo", [("x-auth-token", token)])
        assert (reply.status, reply.json()) == (200, {"usuario": 7})
        assert (await asgi.request(names["app"], "GET", "/yo")).status == 401


async def test_example_of_a_node_over_http_works() -> None:
    assert isinstance((await run(EXAMPLES[3], ""))["backend"], SessionBackend)


async def test_example_of_the_client_works(
    service: Service, redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SESIONES_URL", raising=False)
    monkeypatch.setenv("SESIONES_SERVICE_KEY", KEY)
    await run(EXAMPLES[4], "", f"http://127.0.0.1:{service.port}")
    assert len(EXAMPLES) == 5
    assert redis.exists(counter_key(7))


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
    offered = {name for name in vars(SessionClient) if not name.startswith("_")} - {"aclose"}
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
