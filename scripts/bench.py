"""What an auth check costs: this service against what a team would use instead, side by side.

    python -m scripts.bench                          64 connections, 10,000 sessions
    python -m scripts.bench --connections 1 64 256   one table each
    python -m scripts.bench --only fast webdis       some of the servers

Every server runs on one core, the load (wrk) and Redis on another; short rounds alternate between
the servers, for a shared machine changes its pace from one second to the next, and a figure is the
median of its rounds. The cost is CPU time: utime + stime of the server's processes over the
requests served, which others on the machine disturb less than rates. The other servers read a plain
hash of seven fields, with the same data. In every round the replies to a sample of tokens are
checked to be those sessions. Rates and latencies are of a closed loop at saturation: good for
comparing servers, not for sizing one. "hits" is the share of the checks that the near-cache
answered, from the server's own /metrics.
"""

import argparse
import dataclasses
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis

from scripts import seed, wrk
from scripts.bench_report import Round, draw, table
from scripts.bench_servers import SERVERS, Server
from scripts.command_line import positive, run, show
from scripts.machine import machine
from scripts.seed import Session
from sesiones.settings import Settings
from tests.harness.ports import free_port
from tests.harness.redis_server import RedisCluster, RedisServer

SERVER_CORE, LOAD_CORE = 0, 1
IDLE_SECONDS = 40_000
SAMPLES = 10
"""Tries to get a right one from another server. webdis gives a reply that a client has not waited
for to a later request, and so on until there is none left."""


REQUESTS = """
local requests, i, id = {}, 0, 0
function init(_)
  for line in io.lines("@FILE@") do
    local request = string.gsub(line, "|", "\\r\\n")
    local before, behind = request:match("^(.*){id}(.*)$")
    requests[#requests + 1] = before and {before, behind} or request
  end
  math.randomseed(os.time())
  i, id = math.random(#requests), math.random(1000000, 2000000)
end
function request()
  i = i % #requests + 1
  local request = requests[i]
  if type(request) == "string" then return request end
  id = id + 1
  return request[1] .. id .. request[2]
end
"""
"""``{id}`` in a request is another number in each."""


def pin(core: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, {core})


def cpu_us(pid: int) -> float:
    """CPU time of a process and its children so far, in microseconds."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_us(int(child)) for child in children)


def exact_cpu_us(pid: int) -> float:
    """CPU time of the threads of a process that have not ended, in microseconds. cpu_us() has the
    others and the children too, but knows them only to a hundredth of a second."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1000


def used_memory(redis_port: int) -> int:
    with Redis(port=redis_port) as client:
        return int(client.info("memory")["used_memory"])


def make_sessions(redis_url: str, number: int, folder: Path) -> list[Session]:
    """Sessions of as many users, through the store: their users and tokens."""
    settings = dataclasses.replace(Settings(), redis_url=redis_url, idle_seconds=IDLE_SECONDS)
    return seed.seed(settings, folder / hashlib.sha256(redis_url.encode()).hexdigest(), number, 1)


def store_plainly(redis_port: int, sessions: list[Session]) -> None:
    """The same sessions for the other servers, as a team would store them by itself."""
    now = int(time.time())
    with Redis(port=redis_port) as client:
        for first in range(0, len(sessions), 1000):
            pipeline = client.pipeline(transaction=False)
            for usuario, token in sessions[first : first + 1000]:
                fields = {"id": usuario + 1, "usuario": usuario, "inicio": now, "estado": 1}
                fields |= {"actividad": now, "ventana": IDLE_SECONDS}
                pipeline.hset(plain_key_of(token), mapping=fields | {"dispositivo": seed.DEVICE})
                pipeline.expireat(plain_key_of(token), now + IDLE_SECONDS)
            pipeline.execute()


def plain_key_of(token: str) -> str:
    return f"session:{hashlib.sha256(token.encode()).hexdigest()}"


def render(server: Server, token: str) -> str:
    return server.request.replace("{token}", token).replace("{key}", plain_key_of(token))


@contextmanager
def running(server: Server, redis_port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with tempfile.TemporaryDirectory(prefix="sesiones-bench-") as folder:
        port = free_port()
        process = subprocess.Popen(
            server.command(Path(folder), port, redis_port),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=pin(SERVER_CORE),
        )
        try:
            deadline = time.monotonic() + 20
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{server.name} does not start")
                time.sleep(0.05)
            yield process, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


LOOKUPS = re.compile(r'^sesiones_cache_lookups_total\{outcome="(hit|miss)"\} (\S+)$', re.M)


def cache_lookups(target: "Target") -> tuple[float, float]:
    """The hits of the near-cache and all of its lookups so far; zeros where there is none."""
    if not target.server.is_ours:
        return 0, 0
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=10) as response:
        found = {name: float(value) for name, value in LOOKUPS.findall(response.read().decode())}
    return found.get("hit", 0), sum(found.values())


def share_of_hits(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    lookups = after[1] - before[1]
    return (after[0] - before[0]) / lookups if lookups else None


@dataclasses.dataclass
class Target:
    """A server that runs."""

    server: Server
    pid: int
    port: int
    load: Path
    """The script for wrk."""
    redis_pids: list[int]
    sessions: list[Session]


@contextmanager
def target(
    server: Server, redis: list[RedisServer], sessions: list[Session], folder: Path, script: str
) -> Iterator[Target]:
    requests = folder / f"{server.name}.txt"
    requests.write_text(
        "\n".join(render(server, token).replace("\r\n", "|") for _, token in sessions)
    )
    load = folder / f"{server.name}.lua"
    load.write_text(script.replace("@FILE@", str(requests)))
    pids = [one.process.pid for one in redis]
    for pid in pids:
        os.sched_setaffinity(pid, {LOAD_CORE})
    with running(server, redis[0].port) as (process, port):
        yield Target(server, process.pid, port, load, pids, sessions)


def check_sample(target: Target) -> None:
    """Each reply is a 200, and where the server shows whose session it is, of the right user."""
    wrong = None
    for _ in range(1 if target.server.is_ours else SAMPLES):
        time.sleep(0.1)  # for the requests whose clients have left
        if (wrong := wrong_reply(target)) is None:
            return
    raise SystemExit(f"{target.server.name}: a wrong reply: {wrong}")


def wrong_reply(target: Target) -> str | None:
    """The first one of a sample."""
    server, sessions = target.server, target.sessions
    for usuario, token in random.sample(sessions, min(50, len(sessions))):
        with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
            connection.sendall(render(server, token).encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            reply = f"{response.headers}{response.read().decode()}"
        shown = server.shows.replace("{usuario}", str(usuario)) if server.shows else ""
        if response.status != 200 or shown not in reply:
            return f"{response.status} {reply[:500]}"
    return None


def measure(target: Target, connections: int, seconds: int) -> Round:
    url = f"http://127.0.0.1:{target.port}"
    cache_before = cache_lookups(target)
    before = cpu_us(target.pid), sum(map(cpu_us, target.redis_pids))
    result = wrk.run(
        url, connections=connections, seconds=seconds, script=target.load, core=LOAD_CORE
    )
    after = cpu_us(target.pid), sum(map(cpu_us, target.redis_pids))
    cache_after = cache_lookups(target)
    check_sample(target)
    if result.failed:
        raise SystemExit(
            f"{target.server.name}: {result.failed} of {result.requests} requests failed"
        )
    return Round(
        (after[0] - before[0]) / result.requests,
        (after[1] - before[1]) / result.requests,
        result.rate,
        result.p50_ms * 1000,
        result.p99_ms * 1000,
        share_of_hits(cache_before, cache_after),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=positive, nargs="+", default=[64])
    parser.add_argument("--sessions", type=positive, default=10_000)
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--seconds", type=positive, default=1, help="of load in a round")
    parser.add_argument("--only", nargs="+", metavar="SERVER", choices=[s.name for s in SERVERS])
    parser.add_argument("--output", type=Path, default=Path("var/bench"))
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk makes the load: apt-get install wrk")
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the load and Redis")
    servers = []
    for server in SERVERS:
        if options.only and server.name not in options.only:
            continue
        if server.program and shutil.which(server.program) is None:
            print(f"without {server.name}: {server.install}", file=sys.stderr)
            continue
        servers.append(server)
    everything: dict[int, dict[str, list[Round]]] = {}
    with targets(servers, options.sessions) as started:
        for connections in options.connections:
            results = everything[connections] = rounds(
                started, connections, options.rounds, options.seconds
            )
            print(
                f"{connections} connections, {options.sessions:,} sessions:\n{table(results)}\n",
                flush=True,
            )
    write(everything, options.sessions, options.output)
    return 0


@contextmanager
def targets(servers: list[Server], number: int, script: str = REQUESTS) -> Iterator[list[Target]]:
    """The servers, started on so many sessions. ``script``: of wrk, like REQUESTS."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sesiones-bench-")))
        redis = stack.enter_context(RedisServer(port=str(free_port()), appendonly="no"))
        before = used_memory(redis.port)
        sessions = make_sessions(redis.url, number, folder)
        memory = (used_memory(redis.port) - before) / number
        store_plainly(redis.port, sessions)
        show("")
        print(f"{memory:.0f} bytes of Redis memory a session, index included\n")
        single = on_cluster = [redis], sessions
        if any(server.cluster for server in servers):
            cluster = stack.enter_context(RedisCluster(3, appendonly="no"))
            on_cluster = list(cluster.servers.values()), make_sessions(cluster.url, number, folder)
        yield [
            stack.enter_context(
                target(server, *(on_cluster if server.cluster else single), folder, script)
            )
            for server in servers
        ]


def rounds(
    started: list[Target], connections: int, number: int, seconds: int
) -> dict[str, list[Round]]:
    """Of all servers in turn, by the server's name."""
    results: dict[str, list[Round]] = {one.server.name: [] for one in started}
    for index in range(-1, number):  # the first one warms up
        for one in started:
            place = f"round {index + 1} of {number}: {one.server.name}"
            show(f"{connections} connections, {place}")
            measured = measure(one, connections, seconds)
            if index >= 0:
                results[one.server.name].append(measured)
    show("")
    return results


def write(everything: dict[int, dict[str, list[Round]]], sessions: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine()
    report = {
        "machine": facts,
        "sessions": sessions,
        "rounds": {
            connections: {
                name: [dataclasses.asdict(one) for one in measured]
                for name, measured in results.items()
            }
            for connections, results in everything.items()
        },
    }
    (folder / "bench.json").write_text(json.dumps(report, indent=1))
    try:
        draw(everything, ", ".join(filter(None, facts.values())), folder / "bench.png")
    except ImportError:
        print("no chart without matplotlib: pip install matplotlib", file=sys.stderr)


if __name__ == "__main__":
    run(main)
