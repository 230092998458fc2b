"""`make example`: docs/examples/website behind Caddy on docs/gateways/Caddyfile-web, with two nodes
and a Redis server of their own, until Ctrl-C. The sessions are gone afterwards."""

import argparse
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.command_line import run
from scripts.gateways import GATEWAYS, PUBLIC, Gateway, RunningGateway
from tests.harness.ports import free_port
from tests.harness.processes import connects
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, environment

WEBSITE = Path(__file__).parents[1] / "docs" / "examples" / "website"
START_SECONDS = 20.0


@dataclass
class Website:
    """The example at work."""

    gateway: RunningGateway
    node: Service
    service_key: str


@contextmanager
def website(gateway: Gateway, *, port: int = 0, recheck_seconds: float = 5) -> Iterator[Website]:
    """The example behind the gateway, at the port or any free one. ``recheck_seconds``: how often
    a WebSocket asks for its session."""
    key = secrets.token_urlsafe(32)
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        nodes = [
            stack.enter_context(Service(SESIONES_REDIS_URL=redis.url, SESIONES_SERVICE_KEY=key))
            for _ in range(2)
        ]
        application = stack.enter_context(_application(nodes[0], key, recheck_seconds))
        ports = [node.port for node in nodes]
        running = stack.enter_context(RunningGateway(gateway, ports, application, port=port))
        yield Website(running, nodes[0], key)


@contextmanager
def _application(node: Service, key: str, recheck_seconds: float) -> Iterator[int]:
    """The application as a process; its port. It keeps connections for longer than the gateways."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(WEBSITE), "app:app"]
    command += ["--port", str(port), "--ws", "wsproto"]
    command += ["--log-level", "warning", "--timeout-keep-alive", "75"]
    variables = {
        "SESIONES_URL": f"http://127.0.0.1:{node.port}",
        "SESIONES_SERVICE_KEY": key,
        "EXAMPLE_RECHECK_SECONDS": str(recheck_seconds),
    }
    process = subprocess.Popen(command, env=environment() | variables)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not connects(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the application did not start")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=PUBLIC, help="0: any free one")
    arguments = parser.parse_args()
    caddy = next(each for each in GATEWAYS if each.id == "Caddy-web")
    with website(caddy, port=arguments.port) as running:
        print(f"Website: {running.gateway.origin}/auth/login  (user 7, password secreto)")
        print("Ctrl-C ends it.", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    try:
        run(main)
    except (OSError, RuntimeError) as error:
        sys.exit(f"make example: {error}")
