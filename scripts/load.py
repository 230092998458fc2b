"""`make load`: every load test, small, against a Redis server and a service of its own.

Seeds, runs wrk where there is one, Locust's users with their ledgers, and throughput.py's steps;
leaves report.html and report.json in var/load. The SESIONES_* variables apply but for those that
say where Redis and the service are, and the format of the log. Exit code 1: an answer was wrong.
"""

import argparse
import contextlib
import csv
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts import report, seed, throughput, wrk
from scripts.command_line import positive, run, show
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings, SettingsError
from tests.harness.redis_binary import find_binaries
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, environment

SCRIPTS = Path(__file__).parent
OVERRIDDEN = {
    f"SESIONES_{name}"
    for name in (
        "REDIS_URL",
        "REDIS_URL_FILE",
        "REDIS_CA_FILE",
        "HOST",
        "PORT",
        "UDS",
        "LOG_FORMAT",
    )
}
USERS, SESSIONS = 1000, 10
LOCUST_USERS, LOCUST_USER_RATE = 100, 4
LOCUST_SECONDS_MAX = 20
CONNECTIONS = 64


def main() -> int:
    """The exit code: 0, 1 when an answer was wrong, 2 when it could not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=positive, nargs="+", default=[])
    parser.add_argument("--seconds", type=positive, default=3, help="of each step")
    parser.add_argument("--output", type=Path, default=Path("var/load"), metavar="FOLDER")
    options = parser.parse_args()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sesiones-load-")))
            variables = {
                name: text
                for name, text in os.environ.items()
                if name.startswith("SESIONES_") and name not in OVERRIDDEN
            }
            settings = Settings.read(variables, {})
            variables["SESIONES_REDIS_URL"] = stack.enter_context(RedisServer()).url
            service = stack.enter_context(Service(**variables))
            url = f"http://127.0.0.1:{service.port}"
            tokens = folder / "tokens"
            settings = dataclasses.replace(settings, redis_url=variables["SESIONES_REDIS_URL"])
            sessions = seed.seed(settings, tokens, USERS, SESSIONS)
            raw = _wrk(url, tokens, options.seconds)
            checks, wrong = _locust(url, tokens, 2 * options.seconds, variables, folder)
            measured = throughput.measure(
                f"{url}/sesiones/self",
                sessions,
                rates=options.rates,
                seconds=options.seconds,
                connections=CONNECTIONS,
                processes=throughput.PROCESSES,
            )
    except StoreUnavailable as error:
        print(f"make load: Redis is unavailable: {error}", file=sys.stderr)
        return 2
    except (SettingsError, seed.SeedError, RuntimeError, ValueError, OSError) as error:
        print(f"make load: {error}", file=sys.stderr)
        return 2
    (redis, *_), _ = find_binaries()
    measured["machine"] |= {redis.kind: redis.version}
    measured["settings"] |= {
        f"service: {name}": value
        for name in ("idle_seconds", "max_seconds", "touch_seconds", "workers", "http")
        if (value := getattr(settings, name)) is not None
    }
    measured |= {"checks": checks, "wrk": raw}
    throughput.write(measured, options.output)
    print(report.text_table(*report.rows([measured])), end="\n\n")
    for name, text in (checks | raw).items():
        print(f"{name}: {text}")
    print("", *report.conclusions(measured), "", options.output / "report.html", sep="\n")
    return 1 if wrong or report.failures(measured) else 0


def _wrk(url: str, tokens: Path, seconds: int) -> dict[str, str]:
    """What wrk says of each kind of check."""
    if shutil.which("wrk") is None:
        return {}
    said = {}
    for path in "/sesiones/self", "/sesiones/verificar":
        show(f"wrk: {path}")
        result = wrk.run(
            url + path,
            connections=CONNECTIONS,
            seconds=seconds,
            script=wrk.SCRIPTS / "check.lua",
            arguments=(str(tokens),),
        )
        said[f"wrk {path}"] = (
            f"{result.rate:,.0f} a second in a closed loop, p99 {result.p99_ms:.2f} ms, "
            f"{result.failed} not answered with 200"
        )
    return said


def _locust(
    url: str, tokens: Path, seconds: int, variables: dict[str, str], folder: Path
) -> tuple[dict[str, str], bool]:
    """What Locust's users saw, by request, and whether anything was wrong."""
    show("Locust")
    command = ["-m", "locust", "-f", str(SCRIPTS / "locustfile.py"), "--headless", "--csv"]
    users = ["-u", str(LOCUST_USERS), "-r", str(LOCUST_USERS), "-t", f"{seconds}s"]
    rate = ["--user-rate", str(LOCUST_USER_RATE), "--host", url, "--tokens", str(tokens)]
    ended = subprocess.run(
        [sys.executable, *command, str(folder / "locust"), *users, *rate],
        env=environment() | variables,
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
    *_, total = stats
    if total["Request Count"] == "0" and seconds < LOCUST_SECONDS_MAX:
        # On a busy machine Locust can take its whole time for starting the users.
        return _locust(url, tokens, 3 * seconds, variables, folder)
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
    run(main)
