"""scripts/throughput.py: the open loop against servers of known behaviour, and its reports."""

import asyncio
import contextlib
import json
import multiprocessing
import re
import shutil
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import report, seed, throughput
from scripts.machine import machine
from sesiones import tokens
from tests.harness import generator
from tests.harness.certificates import make_certificate
from tests.harness.generator import Generator, Generators, Step, clock, parse
from tests.harness.service import Service

SESSIONS = [(user, tokens.make(user)) for user in range(50)]
USERS = {token: user for user, token in SESSIONS}

Answer = Callable[[int, str], tuple[float, bytes]]
"""From a request's number and its token to a delay in seconds and a response."""


def right(token: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-ID-Usuario: %d\r\n\r\n{}" % USERS[token]


class FakeServer:
    """Answers each connection's requests in turn; an empty response closes it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connections = 0
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                number = self.requests
                self.requests += 1
                token = re.findall(r"X-Auth-Token: (\S+)", head.decode())[0]
                delay, response = self._answer(number, token)
                if delay:
                    await asyncio.sleep(delay)
                if writer.is_closing() or not response:
                    break
                writer.write(response)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


@contextlib.contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[tuple[FakeServer, str]]:
    fake, loop = FakeServer(answer), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(fake.serve, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = server.sockets[0].getsockname()[1]
        yield fake, f"http{'s' if tls else ''}://127.0.0.1:{port}/sesiones/self"
    finally:

        async def end() -> None:
            server.close()
            await asyncio.sleep(
                0.01
            )  # the server makes tasks of the connections that it has accepted
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0.01)  # the aborted connections close
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join()
        loop.close()


def offer(answer: Answer, rate: float, seconds: float, connections: int = 8) -> Step:
    with (
        serving(answer) as (_, url),
        contextlib.closing(Generator(url, SESSIONS, connections, seed=1)) as load,
    ):
        return load.run(rate, clock(), seconds)


# The open loop.


def test_percentiles_are_those_of_the_servers_delays() -> None:
    def answer(number: int, token: str) -> tuple[float, bytes]:
        return (0.1 if number % 10 == 0 else 0.01), right(token)

    step = offer(answer, rate=300, seconds=1, connections=64)
    assert not step.failures
    assert step.unsent == 0
    assert len(step.latencies) == step.arrivals == len(step.service_times)
    assert 220 < step.arrivals < 380
    figures = throughput.summary(300, 1, step)
    assert 10 <= figures["latency_ms"]["50"] < 60
    assert 100 <= figures["latency_ms"]["99"] < 300
    assert figures["curve"][0][0] == 0
    assert all(a[1] <= b[1] for a, b in zip(figures["curve"], figures["curve"][1:], strict=False))
    slow = sum(latency > 0.09 for latency in step.latencies) / len(step.latencies)
    assert 0.08 < slow < 0.3


def answered_at_once(_: int, token: str) -> tuple[float, bytes]:
    return 0, right(token)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_https_is_measured_where_the_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serving(answered_at_once, tls) as (_, url):
        with pytest.raises(ssl.SSLCertVerificationError):
            Generator(url, SESSIONS, 1, seed=1)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with contextlib.closing(Generator(url, SESSIONS, 8, seed=1)) as load:
            step = load.run(200, clock(), 0.5)
    assert not step.failures
    assert step.arrivals == len(step.latencies) > 50


def test_a_stall_delays_every_request_that_arrived_in_it() -> None:
    """What a closed loop does not see: it would have sent nothing during the stall."""

    def answer(number: int, token: str) -> tuple[float, bytes]:
        if number == 100:
            time.sleep(0.5)
        return 0, right(token)

    step = offer(answer, rate=400, seconds=1, connections=1)
    figures = throughput.summary(400, 1, step)
    assert not step.failures
    assert figures["service_time_ms"]["99"] < 100
    assert figures["service_time_ms"]["100"] >= 500
    assert figures["latency_ms"]["90"] > 300
    waited = sum(latency > 0.1 for latency in step.latencies)
    assert waited > 0.25 * step.arrivals


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(generator, "REPLY_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
def test_the_rate_is_offered_whether_or_not_it_is_answered() -> None:
    step = offer(lambda _, token: (0.1, right(token)), rate=1000, seconds=0.5, connections=2)
    assert 400 < step.arrivals < 600
    assert 4 <= step.answered <= 12
    assert step.unsent > 360
    assert len(step.latencies) == step.arrivals
    figures = throughput.summary(1000, 0.5, step)
    assert figures["saturated"]
    assert figures["latency_ms"]["50"] > 250  # at least what they had waited when it ended
    assert figures["service_time_ms"]["50"] < 150


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("response", "failure"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "status 401"),
        (b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n", "status 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "another user's session"),
        (b"HTTP/1.1 200 OK\r\nX-ID-Usuario: 51\r\nContent-Length: 0\r\n\r\n", "another user's"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "not HTTP/1.1"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP/1.1"),
        (b"", "connection lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "no reply"),
    ],
)
def test_wrong_replies_are_failures_and_no_latencies(response: bytes, failure: str) -> None:
    def answer(number: int, token: str) -> tuple[float, bytes]:
        return 0, response if number == 5 else right(token)

    step = offer(answer, rate=300, seconds=0.1, connections=4)
    assert len(step.failures) == 1
    (why, count), *_ = step.failures.items()
    assert why.startswith(failure)
    assert count == 1
    assert step.answered >= 10
    assert len(step.service_times) == step.arrivals - 1


def test_slow_replies_alone_are_not_saturation() -> None:
    step = offer(lambda _, token: (0.1, right(token)), rate=200, seconds=0.5, connections=64)
    assert step.answered == step.arrivals
    assert not throughput.summary(200, 0.5, step)["saturated"]


@pytest.mark.usefixtures("impatient")
def test_a_service_that_dies_while_nothing_is_out_is_a_failure() -> None:
    with serving(lambda _, token: (0, right(token))) as (fake, url):
        load = Generator(url, SESSIONS, 4, seed=1)
        while fake.connections < 4:
            time.sleep(0.01)
    with contextlib.closing(load):
        step = load.run(300, clock(), 0.5)
    assert step.failures["no connection"] == step.unsent > 50
    assert step.answered == 0


@pytest.mark.usefixtures("impatient")
def test_a_service_that_hangs_is_not_a_service_that_is_gone() -> None:
    step = offer(lambda _, token: (60, right(token)), rate=300, seconds=0.5, connections=4)
    assert step.failures == {"no reply": 4}
    assert step.unsent > 50


def test_closing_does_not_wait_for_the_step() -> None:
    with serving(lambda _, token: (0, right(token))) as (fake, url):
        with Generators(url, SESSIONS, connections=2, processes=1) as generators:
            generators._pipes[0].send((10, clock(), 60))
            while not fake.requests:
                time.sleep(0.01)
            started = clock()
        assert clock() - started < 5


def test_a_response_in_pieces_is_one_response() -> None:
    whole = right(SESSIONS[7][1])
    assert parse(whole) == (200, "7", False)
    assert all(parse(whole[:length]) is None for length in range(len(whole)))
    assert parse(whole.replace(b"X-ID", b"connection: close\r\nx-id")) == (200, "7", True)
    with pytest.raises(ValueError, match="more than"):
        parse(whole + b"H")


def test_processes_share_the_rate_and_the_connections() -> None:
    with serving(lambda _, token: (0, right(token))) as (fake, url):
        with Generators(url, SESSIONS, connections=5, processes=2) as generators:
            step = generators.run(400, 0.5)
        assert fake.connections == 5
        assert fake.requests == step.arrivals == len(step.latencies)
    assert 140 < step.arrivals < 260
    assert 0 < step.busy < 1


# What is made of it.


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 1001)]
    ranks = [throughput.percentile(values, p) for p in (0, 0.1, 50, 99, 99.9, 100)]
    assert ranks == [1, 1, 500, 990, 999, 1000]
    assert throughput.percentile([], 99) == 0


class Capacity:
    """Generators against a server that answers so many a second."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def run(self, rate: float, seconds: float) -> Step:
        return Step(int(rate * seconds), int(min(rate, self.capacity) * seconds))


def test_the_rates_found_go_up_to_the_limit_and_beyond() -> None:
    generators = Capacity(13_000)
    steps: list[report.Report] = []
    rates = []
    for rate in throughput.find_rates(generators, steps, Counter()):  # type: ignore[arg-type]
        rates.append(rate)
        steps.append(throughput.summary(rate, 1, generators.run(rate, 1)))
        if len(rates) == 10:
            generators.capacity = 16_000  # the machine was busy when the limit was looked for
    assert rates[:3] == [1300, 2600, 3900]
    assert rates[-2:] == [16_000, 17_000]
    assert [step["saturated"] for step in steps] == [False] * (len(steps) - 1) + [True]


def test_wrong_answers_while_the_limit_is_looked_for_are_kept() -> None:
    class Wrong(Capacity):
        def run(self, rate: float, seconds: float) -> Step:
            step = super().run(rate, seconds)
            step.failures.update({"another user's session": 1, "no reply": 5})
            return step

    failures: Counter[str] = Counter()
    steps = [{"saturated": True}]
    list(throughput.find_rates(Wrong(1500), steps, failures))  # type: ignore[arg-type]
    assert failures == {"another user's session": 3}
    said = report.conclusions({"steps": [], "search_failures": failures})
    assert said == ["Failures: another user's session: 3."]
    with pytest.raises(ValueError, match=r"no right answer: another user's session: 2, no reply"):
        list(throughput.find_rates(Wrong(0), steps, Counter()))  # type: ignore[arg-type]


def test_a_rate_is_too_high_when_most_of_the_latency_is_waiting() -> None:
    step = Step(1000, 1000)
    step.service_times.extend([0.001] * 1000)
    step.latencies.extend([0.0019] * 501 + [0.1] * 499)
    assert not throughput.summary(1000, 1, step)["saturated"]
    step.latencies[0] = step.latencies[1] = 0.1
    assert throughput.summary(1000, 1, step)["saturated"]
    assert throughput.summary(1000, 1, Step(1000, 969))["saturated"]
    assert not throughput.summary(1000, 1, Step(1000, 970))["saturated"]


def test_report_says_when_the_generator_is_the_limit() -> None:
    step = Step(1000, 1000, busy=0.95)
    step.latencies.extend([0.001] * 1000)
    step.service_times.extend([0.001] * 1000)
    limited = throughput.summary(1000, 1, step)
    assert limited["generator_limited"]
    step.busy = 0.5
    assert not throughput.summary(1000, 1, step)["generator_limited"]
    step.lateness.extend([0.0016] * 1000)
    late = throughput.summary(1000, 1, step)
    assert late["generator_limited"]
    assert report.note(late) == "generator"
    said = " ".join(report.conclusions({"steps": [limited | {"offered": 1234}]}))
    assert "At 1,234 a second the load generator, or its machine, was the limit" in said


def test_page_names_its_run_and_fits_a_phone_and_a_dark_screen() -> None:
    step = Step(1000, 1000)
    step.latencies.extend([0.001] * 1000)
    step.service_times.extend([0.001] * 1000)
    steps = [throughput.summary(1000, 1, step)]
    facts = machine()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["date"])
    assert re.fullmatch(r"([0-9a-f]{10,}(-dirty)?)?", facts["commit"])
    page = report.page([{"version": "9.9", "machine": facts, "steps": steps}])
    for fact in "9.9", facts["date"], facts["commit"], facts["processor"]:
        assert fact in page.partition("<figure>")[0]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "color-scheme: light dark" in page
    # A report of an earlier version, which has no date, can still be compared.
    del facts["date"], facts["commit"]
    assert "date" not in report.page([{"version": "0", "machine": facts, "steps": steps}])


@pytest.mark.parametrize("url", ["http://h:1/p", "https://h/p", "https://h:443/p?a=b"])
def test_url_may_be_http_or_https(url: str) -> None:
    assert throughput.http_url(url) == url


# The whole, against the service.


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code, standard output and standard error of the script."""

    def run(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["throughput", *options])
        try:
            code = throughput.main()
        except SystemExit as ended:  # argparse's
            code = int(str(ended.code))
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("rates", [(), ("--rates", "50")])
def test_only_wrong_answers_end_in_one_line(
    run: Run, service: Service, seeded: Path, tmp_path: Path, rates: tuple[str, ...]
) -> None:
    url = f"http://127.0.0.1:{service.port}/nowhere"
    options = "--tokens", str(seeded), "--seconds", "1", "--output", str(tmp_path)
    code, _, errors = run("--url", url, *options, *rates)
    assert code == 2
    assert re.fullmatch(rf"throughput: {url}: no right answer: status 404: [0-9,]+\n", errors)


def test_unknown_sessions_are_failures_in_the_report(
    run: Run, service: Service, seeded: Path, tmp_path: Path
) -> None:
    unknown = tmp_path / "tokens"
    user = seed.FIRST_USER + 99
    unknown.touch(0o600)
    unknown.write_text(seeded.read_text() + f"{user} {tokens.make(user)}\n" * 100)
    url = f"http://127.0.0.1:{service.port}/sesiones/self"
    options = "--tokens", str(unknown), "--seconds", "1", "--rates", "200"
    code, output, _ = run("--url", url, *options, "--output", str(tmp_path))
    assert code == 1
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert 50 < steps[0]["failures"]["status 401"] < 150
    assert f"Failures: status 401: {steps[0]['failures']['status 401']}." in output


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--url", "ftp://localhost/"), "http://host:port/path"),
        (("--url", "http://127.0.0.1:1/sesiones/self"), "Connection refused"),
        (("--url", "http://127.0.0.1:99999/sesiones/self"), "http://host:port/path"),
        (("--url", "http://a..b/sesiones/self"), "throughput: "),
        (("--tokens", "/nonexistent"), "No such file"),
        (("--output", __file__), "File exists"),
        (("--rates", "fast"), "whole number above 0"),
        (("--compare", __file__, __file__), "is not a report"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, seeded: Path, tmp_path: Path, options: tuple[str, ...], line: str
) -> None:
    code, _, errors = run("--tokens", str(seeded), "--output", str(tmp_path), *options)
    assert code == 2
    assert line in errors.splitlines()[-1]


def test_file_without_tokens_is_one_line(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "tokens"
    empty.touch(0o600)
    code, _, errors = run("--tokens", str(empty), "--output", str(tmp_path))
    assert (code, errors) == (2, "throughput: there are no tokens in the file\n")


def test_a_process_that_was_killed_is_an_error() -> None:
    with serving(lambda _, token: (0, right(token))) as (_, url):
        generators = Generators(url, SESSIONS, connections=1, processes=1)
        with generators:
            threading.Timer(0.2, multiprocessing.active_children()[0].kill).start()
            with pytest.raises(OSError, match=r"ended|reset"):
                generators.run(10, 30)
