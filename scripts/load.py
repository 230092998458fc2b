"""`make load`: every load test, small, against a Redis server and a service of its own.

Seeds, runs wrk where there is one, Locust's users with their ledgers, and throughput.py's steps;
leaves report.html and report.json in var/load. The SESIONES_* variables apply but for those that
say where Redis and the service are. Exit code 1 when an answer was wrong.
"""

import argparse
import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from redis import Redis

from scripts import report, seed, throughput
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings, SettingsError
from tests.harness.redis_server import RedisServer, free_port

SCRIPTS = Path(__file__).parent
USERS, SESSIONS = 1000, 10
LOCUST_USERS, LOCUST_USER_RATE = 100, 4
CONNECTIONS = 64


def main() -> int:
    """The exit code: 0, 1 when an answer was wrong, 2 when it could not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=seed.positive, nargs="+", default=[])
    parser.add_argument("--seconds", type=seed.positive, default=3, help="of each step")
    parser.add_argument("--output", type=Path, default=Path("var/load"), metavar="FOLDER")
    options = parser.parse_args()
    # What ends us also ends what we have started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sesiones-load-")))
            server = stack.enter_context(RedisServer())
            environment = _environment(server.url)
            settings = Settings.read(environment, {})
            url = stack.enter_context(_service(settings, environment, folder))
            tokens = folder / "tokens"
            sessions = seed.seed(settings, tokens, USERS, SESSIONS)
            wrk = _wrk(url, tokens, options.seconds)
            checks, wrong = _locust(url, tokens, 2 * options.seconds, environment, folder)
            measured = throughput.measure(
                f"{url}/sesiones/self",
                sessions,
                rates=options.rates,
                seconds=options.seconds,
                connections=CONNECTIONS,
                processes=throughput.PROCESSES,
            )
            with Redis(unix_socket_path=str(server.socket)) as redis:
                info = redis.info("server")
    except StoreUnavailable as error:
        print(f"make load: Redis is unavailable: {error}", file=sys.stderr)
        return 2
    except (SettingsError, seed.SeedError, RuntimeError, ValueError, OSError) as error:
        print(f"make load: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    kind = "valkey" if "valkey_version" in info else "redis"
    measured["machine"] |= {kind: info[f"{kind}_version"]}
    measured["settings"] |= {
        f"service: {name}": value
        for name in ("idle_seconds", "max_seconds", "touch_seconds", "workers", "http")
        if (value := getattr(settings, name)) is not None
    }
    measured |= {"checks": checks, "wrk": wrk}
    throughput.write(measured, options.output)
    print(report.text_table(*report.rows([measured])), end="\n\n")
    for name, text in (checks | wrk).items():
        print(f"{name}: {text}")
    print("", *report.conclusions(measured), "", options.output / "report.html", sep="\n")
    return 1 if wrong or report.failures(measured) else 0


def _environment(redis_url: str) -> dict[str, str]:
    ours = {"SESIONES_REDIS_URL": redis_url, "SESIONES_PORT": str(free_port())}
    elsewhere = ("SESIONES_HOST", "SESIONES_UDS")
    return {name: text for name, text in os.environ.items() if name not in elsewhere} | ours


@contextlib.contextmanager
def _service(settings: Settings, environment: dict[str, str], folder: Path) -> Iterator[str]:
    """Its URL, while it runs."""
    url = f"http://{settings.host}:{settings.port}"
    log = folder / "service.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sesiones", "serve"],
            env=environment,
            stderr=file,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
        )
    try:
        while not _serves(url):
            if process.poll() is not None:
                last = log.read_text().splitlines()[-1:]
                raise RuntimeError(f"the service did not start: {' '.join(last)}")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def _serves(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/sesiones/self", timeout=1)  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _wrk(url: str, tokens: Path, seconds: int) -> dict[str, str]:
    """What wrk says of each kind of check."""
    if shutil.which("wrk") is None:
        return {}
    said = {}
    for path in "/sesiones/self", "/sesiones/verificar":
        throughput.progress(f"wrk: {path}")
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s"]
        ended = subprocess.run(
            [*command, str(SCRIPTS / "wrk/check.lua"), url + path, "--", str(tokens)],
            capture_output=True,
            text=True,
        )
        rate = re.search(r"Requests/sec: *([0-9.]+)", ended.stdout)
        p99 = re.search(r"99% +(\S+)", ended.stdout)
        bad = re.search(r"Not answered with 200: (\d+) of", ended.stdout)
        if rate is None or p99 is None or bad is None:
            raise RuntimeError(f"wrk: {ended.stdout} {ended.stderr}")
        said[f"wrk {path}"] = (
            f"{float(rate[1]):,.0f} a second in a closed loop, p99 {p99[1]}, "
            f"{bad[1]} not answered with 200"
        )
    return said


def _locust(
    url: str, tokens: Path, seconds: int, environment: dict[str, str], folder: Path
) -> tuple[dict[str, str], bool]:
    """What Locust's users saw, by request, and whether anything was wrong."""
    throughput.progress("Locust")
    command = ["-m", "locust", "-f", str(SCRIPTS / "locustfile.py"), "--headless", "--csv"]
    users = ["-u", str(LOCUST_USERS), "-r", str(LOCUST_USERS), "-t", f"{seconds}s"]
    rate = ["--user-rate", str(LOCUST_USER_RATE), "--host", url, "--tokens", str(tokens)]
    ended = subprocess.run(
        [sys.executable, *command, str(folder / "locust"), *users, *rate],
        env=environment,
        capture_output=True,
        text=True,
    )
    try:
        with (folder / "locust_stats.csv").open() as file:
            stats = list(csv.DictReader(file))
        with (folder / "locust_failures.csv").open() as file:
            failures = list(csv.DictReader(file))
    except FileNotFoundError:
        raise RuntimeError(f"Locust: {ended.stderr}") from None
    said = {
        f"{line['Type'] or 'all'} {line['Name']}": f"{int(line['Request Count']):,} requests, "
        f"{int(line['Failure Count']):,} failures"
        for line in stats
    }
    for line in failures:
        # CatchResponseError('the ledger's words')
        words = re.sub(r"^\w+\(['\"](.*)['\"]\)$", r"\1", line["Error"])
        name = f"wrong: {line['Method']} {line['Name']}: {words}"
        said[name] = f"{int(line['Occurrences']):,} times"
    return said, ended.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
