"""The servers that scripts/bench.py compares: this service, and what a team would use instead."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Server:
    """One way to answer a check. ``request`` has the fields {token} and {key}. ``product``: how
    the chart calls it."""

    name: str
    what: str
    command: Callable[[Path, int, int], list[str]]
    request: str = "GET /sesiones/self HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {token}\r\n\r\n"
    program: str | None = None
    install: str = ""
    shows: str | None = '"{usuario}"'
    product: str = "sesiones"
    cluster: bool = False
    """On a Cluster of three masters."""

    @property
    def is_ours(self) -> bool:
        return self.command.__qualname__.startswith("sesiones")


async def floor(scope: Any, receive: Any, send: Any) -> None:
    """uvicorn's own floor: an application that does nothing."""
    if scope["type"] == "http":
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


def sesiones(*flags: str, scheme: str = "redis") -> Callable[[Path, int, int], list[str]]:
    def command(_: Path, port: int, redis_port: int) -> list[str]:
        url = f"{scheme}://127.0.0.1:{redis_port}"
        arguments = ["serve", "--port", str(port), "--redis-url", url, "--redis-timeout", "5"]
        return [sys.executable, "-m", "sesiones", *arguments, *flags]

    return command


def bare_uvicorn(_: Path, port: int, __: int) -> list[str]:
    options = ["--http", "httptools", "--loop", "uvloop", "--ws", "none", "--lifespan", "off"]
    command = [
        *("-m", "uvicorn", "scripts.bench_servers:floor", "--port", str(port), "--no-access-log"),
    ]
    return [sys.executable, *command, *options]


def webdis(folder: Path, port: int, redis_port: int) -> list[str]:
    configuration = {
        "redis_host": "127.0.0.1",
        "redis_port": redis_port,
        "http_host": "127.0.0.1",
        "http_port": port,
        "threads": 1,
        "pool_size": 4,
        "daemonize": False,
        "websockets": False,
        "database": 0,
        "verbosity": 0,
        "logfile": str(folder / "webdis.log"),
    }
    (folder / "webdis.json").write_text(json.dumps(configuration))
    return ["webdis", str(folder / "webdis.json")]


NGINX = """
{modules}
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ {content} }} }}
}}
"""

LUA = """
content_by_lua_block {
  local redis = require("nginx.redis"):new()
  redis:set_timeout(5000)
  local ok, err = redis:connect("127.0.0.1", @PORT@)
  if not ok then return ngx.exit(503) end
  local reply = redis:hgetall(ngx.req.get_headers()["x-auth-token"])
  redis:set_keepalive(60000, 1000)
  if not reply or #reply == 0 then return ngx.exit(401) end
  ngx.header["content-type"] = "application/json"
  ngx.say(require("cjson").encode(redis:array_to_hash(reply)))
}
"""


def nginx(content: str) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, redis_port: int) -> list[str]:
        modules = "".join(
            f"include {path};\n" for path in sorted(Path("/etc/nginx/modules-enabled").glob("*"))
        )
        path = folder / "nginx.conf"
        path.write_text(
            NGINX.format(
                modules=modules,
                folder=folder,
                port=port,
                content=content.replace("@PORT@", str(redis_port)),
            )
        )
        return ["nginx", "-c", str(path), "-e", str(folder / "error.log")]

    return command


KEY_REQUEST = "GET / HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {key}\r\n\r\n"
VARIED_REQUEST = (
    "GET /sesiones/self HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {token}\r\n"
    "X-Request-Id: 7f3a9c52-8d1e-4b6f-a0c3-{id}\r\n\r\n"
)
VERIFY_REQUEST = (
    "GET /sesiones/verificar HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {token}\r\n\r\n"
)


def ours(
    name: str,
    what: str,
    *flags: str,
    scheme: str = "redis",
    request: str = Server.request,
    shows: str = '"ID_Usuario":{usuario},',
) -> Server:
    cluster = scheme == "redis+cluster"
    command = sesiones(*flags, scheme=scheme)
    return Server(name, what, command, request, shows=shows, cluster=cluster)


def nginx_alone(name: str, what: str, request: str) -> Server:
    content = "default_type application/json; return 200 '" + '{"ID_Sesion":1}' * 15 + "';"
    return Server(
        name,
        what,
        nginx(content),
        request,
        product="nginx",
        program="nginx",
        install="apt-get install nginx-light",
        shows=None,
    )


TOUCH_60 = "--touch-seconds", "60"
CACHED = *TOUCH_60, "--cache-seconds", "60"
SERVERS = [
    ours("fast", "self, TOUCH=60", *TOUCH_60),
    ours("varied", "self, TOUCH=60, heads that differ", *TOUCH_60, request=VARIED_REQUEST),
    ours("cached", "self from memory, CACHE=60", *CACHED),
    ours("cached-varied", "from memory, heads that differ", *CACHED, request=VARIED_REQUEST),
    ours(
        "cached-touch-1", "self, TOUCH=1, CACHE=60", "--touch-seconds", "1", "--cache-seconds", "60"
    ),
    ours("touch-1", "self, TOUCH=1", "--touch-seconds", "1"),
    ours(
        "verificar",
        "verificar, TOUCH=60",
        *TOUCH_60,
        request=VERIFY_REQUEST,
        shows="x-id-usuario: {usuario}\n",
    ),
    ours("starlette", "self through Starlette, TOUCH=60", *TOUCH_60, "--http", "httptools"),
    ours("cluster", "self, TOUCH=60, 3 masters", *TOUCH_60, scheme="redis+cluster"),
    Server("uvicorn", "a bare ASGI app, no Redis", bare_uvicorn, shows=None, product="uvicorn"),
    Server(
        "webdis",
        "C, a plain HGETALL",
        webdis,
        request="GET /HGETALL/{key} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        program="webdis",
        product="webdis",
        install="apt-get install webdis",
    ),
    Server(
        "nginx-lua",
        "a plain HGETALL",
        nginx(LUA),
        product="nginx + Lua",
        request=KEY_REQUEST,
        program="nginx",
        install="apt-get install nginx-light libnginx-mod-http-lua lua-nginx-redis lua-cjson",
    ),
    nginx_alone("nginx", "`return 200`, no Redis", KEY_REQUEST),
    nginx_alone("nginx-varied", "`return 200`, heads that differ", VARIED_REQUEST),
]
