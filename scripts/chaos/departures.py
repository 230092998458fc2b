"""Clients leave as soon as they have asked: some close, some reset the connection, some shut their
sending side and wait. What they leave behind in the service, and what the others notice."""

import asyncio
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import uvloop

from scripts.chaos import Bar, resident, trial
from scripts.chaos.outages import OUT, judge
from sesiones.sesion import Sesion
from sesiones.store import SessionStore
from tests.harness.faults import client
from tests.harness.progress import Progress
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service, comes_true
from tests.harness.traffic import words

DEPARTURES, WARM_DEPARTURES = 10_000, 2_000
SHORT_DEPARTURES, SHORT_WARM_DEPARTURES = 300, 60
DEPARTURES_PER_SECOND = 400
OTHERS_PER_SECOND = 300
SETTLE_SECONDS = 5.0
CLOSED_SECONDS = 0.2
"""Until the service knows that a connection is."""
GROWTH = 0.05
RESET = struct.pack("ii", 1, 0)  # SO_LINGER, for no time: close() resets


class Held(NamedTuple):
    """What the service's process holds."""

    in_flight: float
    descriptors: int
    kilobytes: int


def held(service: Service) -> Held:
    descriptors = len(os.listdir(f"/proc/{service.process.pid}/fd"))
    shown = service.request("GET", "/metrics").body.decode()
    gauges = re.findall(r"^sesiones_operations_in_flight\{.*\} (\S+)$", shown, re.MULTILINE)
    assert gauges
    return Held(sum(map(float, gauges)), descriptors, resident(service.process.pid))


def play(short: bool) -> Iterator[Bar]:
    yield from uvloop.run(_play(short))


async def _play(short: bool) -> list[Bar]:
    number, warm = (
        (SHORT_DEPARTURES, SHORT_WARM_DEPARTURES) if short else (DEPARTURES, WARM_DEPARTURES)
    )
    node = Service(SESIONES_REDIS_TIMEOUT="4")
    async with trial(RedisServer(), node, spare=16) as departures:
        traffic, redis = departures.traffic, departures.redis
        async with SessionStore.from_url(redis.url, timeout_seconds=5) as store:
            sessions = [await store.create(10_000 + n, "laptop") for n in range(number + warm)]

        async def depart(some: Sequence[Sesion]) -> Counter[str]:
            seconds = len(some) / DEPARTURES_PER_SECOND
            _, (answers,) = await departures.run(
                "departures, those that stay",
                OTHERS_PER_SECOND,
                seconds,
                lambda: asyncio.to_thread(_leave, node.port, some),
            )
            traffic.close()
            await asyncio.sleep(CLOSED_SECONDS)
            return answers

        await depart(sessions[number:])
        before = await asyncio.to_thread(held, node)
        answers = await depart(sessions[:number])
        await asyncio.to_thread(comes_true, lambda: held(node)[:2] == before[:2], SETTLE_SECONDS)
        await asyncio.sleep(CLOSED_SECONDS)
        after = await asyncio.to_thread(held, node)
        await traffic.verify()
        with client(redis) as keys:
            names = [str(key) for key in keys.scan_iter(count=1000)]
            endless = sum(keys.ttl(name) < 0 for name in names if not name.endswith(":n"))
    refused = judge(traffic.events, [], OUT).wrong
    growth = after.kilobytes / before.kilobytes - 1
    return [
        Bar(
            f"{number:,} clients leave: those that still read get their answers",
            ", ".join(f"{what}: {n:,}" for what, n in sorted(answers.items())),
            set(answers) == {"POST 201", "PUT 200", "DELETE 200"},
        ),
        Bar(
            "no other request fails or gets another's answer",
            f"{sum(refused.values())} of {len(traffic.events):,} failed"
            f"{''.join(f', {what} ({n})' for what, n in refused.items())}; {words(traffic.wrong)}",
            not refused and not traffic.wrong,
        ),
        Bar(
            "nothing stays behind",
            f"{after.in_flight:.0f} operations in flight, {before.descriptors} descriptors before "
            f"and {after.descriptors} after, {endless} of {len(names):,} keys without an expiry",
            after[:2] == (0, before.descriptors) and not endless,
        ),
        Bar(
            f"memory grows by less than {GROWTH:.0%}",
            f"{before.kilobytes / 1024:.1f} MiB, then {growth:+.1%}",
            short or growth < GROWTH,
        ),
    ]


def _leave(port: int, sessions: Sequence[Sesion]) -> Counter[str]:
    """One client a session: the answers to those that read."""
    progress = Progress("departures", len(sessions))
    answers: Counter[str] = Counter()
    begun = time.monotonic()
    for number, session in enumerate(sessions):
        time.sleep(max(0.0, begun + number / DEPARTURES_PER_SECOND - time.monotonic()))
        method = ("POST", "PUT", "DELETE")[number % 3]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(_request(method, session))
            match number // 3 % 3:
                case 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                case 1:
                    connection.shutdown(socket.SHUT_WR)
                    status = connection.recv(65536)[9:12].decode()
                    answers[f"{method} {status}"] += 1
        progress.step()
    progress.end()
    return answers


def _request(method: str, session: Sesion) -> bytes:
    body = session.to_json()  # of which POST and DELETE take what they need
    path = "/sesiones/logout" if method == "DELETE" else "/sesiones"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: sesiones\r\nX-Auth-Token: {session.Token_Sesion}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
