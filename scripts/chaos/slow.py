"""slowhttptest's slow heads, slow bodies and slow reads, beside good requests.

A connection is slow for as long as the service holds it: what ss lists on its port with an inode,
which is then a process's. Good requests arrive at a rate, and steps with and without an attack take
turns, because the machine's own noise is larger than what is looked for.
"""

import re
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from scripts.chaos import Bar, NotInstalledError
from scripts.throughput import percentile
from tests.harness.generator import Generators, Step
from tests.harness.progress import Progress
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

NEEDED = {"slowhttptest": "slowhttptest", "ss": "iproute2"}
CONNECTIONS, SHORT_CONNECTIONS = 1000, 100
ATTACKS = {
    "heads": ("-H", "/sesiones/self"),
    "bodies": ("-B", "/sesiones"),
    "reads": ("-X", "/openapi.json"),  # the largest answer, and the kernel has it at once
}
"""How slow they are is slowhttptest's own choice; how many there are is not."""
ELSEWHERE = "nice", "-n", "19"
"""An attacker has a machine of its own: here it must not take the service's time."""
OPENED_A_SECOND = 250
"""All of them are open before the first is closed."""
TURNS = 5
"""Steps without each attack, and as many beside it."""
GOOD_SECONDS = 9.0
"""Until about the last of an attack is closed."""
RATE = 300.0
CLOSED_SECONDS = 6.0
SLOWER = 2.0
SAMPLE_SECONDS = 0.2


def play(short: bool) -> Iterator[Bar]:
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            raise NotInstalledError(f"{program}: apt-get install {package}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Without a service key POST is open: the service waits for the bodies.
    with RedisServer() as redis, Service(SESIONES_REDIS_URL=redis.url) as service:
        if short:
            ages, _ = attack(service.port, "heads", SHORT_CONNECTIONS)
            yield _closed("heads", SHORT_CONNECTIONS, ages)
            return
        sessions = [(user, service.new_session(user)["Token_Sesion"]) for user in range(100)]
        url = f"http://127.0.0.1:{service.port}/sesiones/self"
        with Generators(url, sessions, 50, 1) as good, ThreadPoolExecutor() as executor:
            good.run(RATE, 2)  # warm
            for name in ATTACKS:
                progress = Progress(f"slow {name}", TURNS)
                without, beside = list[Step](), list[Step]()
                ages, at_once = list[float](), list[int]()
                for _ in range(TURNS):
                    without.append(good.run(RATE, GOOD_SECONDS))
                    step = executor.submit(good.run, RATE, GOOD_SECONDS)
                    of_these, most = attack(service.port, name, CONNECTIONS)
                    beside.append(step.result())
                    ages += of_these
                    at_once.append(most)
                    progress.step()
                progress.end()
                yield _closed(name, CONNECTIONS * TURNS, ages)
                yield _unharmed(name, without, beside, min(at_once))


def attack(port: int, name: str, connections: int) -> tuple[list[float], int]:
    """For how long the service held each of the attack's connections, in seconds, and how many of
    them at once."""
    mode, path = ATTACKS[name]
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    most = 0
    others = held(port)
    command = [*ELSEWHERE, "slowhttptest", mode, "-u", f"http://127.0.0.1:{port}{path}"]
    command += ["-c", str(connections), "-r", str(OPENED_A_SECOND), "-l", "60"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            slow, now = held(port) - others, time.monotonic()
            most = max(most, len(slow))
            for client in slow:
                first.setdefault(client, now)
                last[client] = now
            if len(first) >= connections and not slow:
                process.terminate()  # of slow reads it does not see that they are closed
            time.sleep(SAMPLE_SECONDS)
    return [last[client] - first[client] for client in first], most


def held(port: int) -> set[str]:
    """The inodes of the connections that the process on this port holds."""
    # /proc/net/tcp would do, but takes a hundred times as long where thousands have been closed.
    such = "state", "connected", "exclude", "time-wait", "sport", "=", f":{port}"
    command = [*ELSEWHERE, "ss", "-tanHe", *such]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r" ino:([1-9][0-9]*) ", listed))


def _closed(name: str, connections: int, ages: Sequence[float]) -> Bar:
    longest = max(ages, default=0.0)
    return Bar(
        f"every one of {connections:,} slow {name} is closed in {CLOSED_SECONDS:.0f} s",
        f"{len(ages):,} were held for {longest:.1f} s at most",
        len(ages) >= connections and longest <= CLOSED_SECONDS,
    )


def _unharmed(name: str, without: Sequence[Step], beside: Sequence[Step], at_once: int) -> Bar:
    before, during = (
        statistics.median(percentile(sorted(step.latencies), 99) for step in steps) * 1000
        for steps in (without, beside)
    )
    failed = sum(step.failures.total() for step in (*without, *beside))
    return Bar(
        f"beside {CONNECTIONS:,} slow {name}, p99 of good requests is at most {SLOWER:.0f} times "
        "that without",
        f"{during:.1f} ms to {before:.1f} ms, {during / before:.1f} times, {failed} failed; "
        f"{at_once:,} were open at once",
        during <= SLOWER * before and not failed,
    )
