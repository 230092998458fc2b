"""Nodes whose clocks are 5 minutes off, one ahead and one behind: the same sessions live on both.

One life of sessions is lived three times at the same moments: created on the node that is ahead
and checked on the other, the other way round, and on a node whose clock is right. Every answer
must be the same to the byte, but for its Date, its token and its numbers of user and session.
"""

import re
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from email.utils import parsedate_to_datetime
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from redis import Redis

from scripts.chaos import Bar, NotInstalledError
from sesiones import tokens
from tests.harness.progress import Progress
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

OFFSETS = 300, -300, 0
"""Of the nodes' clocks, in seconds."""
PAIRS = (0, 1), (1, 0), (2, 2)
"""The nodes of each life."""
ROUNDS, SHORT_ROUNDS = 20, 1
IDLE_SECONDS, MAX_SECONDS = 2, 43_200
SLOW_ROUNDS_MAX = 10


class _Request(NamedTuple):
    """``status``: what it must be answered."""

    node: int
    status: int
    method: str
    path: str
    token: str = ""
    body: object = None


_Life = Generator[_Request | int, bytes, None]
"""Requests, each for its whole answer, and the seconds of the life to wait for."""


class _TooSlow(Exception):
    """A second ended before everything was asked that belongs in it."""


def library() -> Path | None:
    """Where libfaketime is, if it is installed."""
    places = "lib*/faketime/libfaketime.so.1", "lib*/*/faketime/libfaketime.so.1"
    return next((path for place in places for path in Path("/usr").glob(place)), None)


def play(short: bool) -> Iterator[Bar]:
    faketime = library()
    if faketime is None:
        raise NotInstalledError("libfaketime: apt-get install libfaketime")
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        redis = stack.enter_context(Redis(unix_socket_path=str(server.socket)))
        services = [_service(server.url, faketime, offset) for offset in OFFSETS]
        nodes = _Nodes([stack.enter_context(service).port for service in services], redis)
        rounds = SHORT_ROUNDS if short else ROUNDS
        progress = Progress("clocks: rounds", rounds)
        for _ in range(rounds):
            nodes.play_round()
            progress.step()
        progress.end()
    off = ", ".join(f"{min(seen):+d} to {max(seen):+d}" for seen in nodes.dates)
    # A busy node's Date is some seconds off.
    yield Bar(
        "the clocks are 300 s ahead, 300 s behind and right, as each answer's Date says",
        f"{off} s",
        all(
            abs(date - offset) <= 10
            for offset, seen in zip((300, -300, 0), nodes.dates, strict=True)
            for date in seen
        ),
    )
    yield Bar(
        "the same answers to the byte wherever a session is made, used, changed and ended",
        f"{len(nodes.wrong)} of {nodes.answers} differ"
        + "".join(f"; {w}" for w in nodes.wrong[:2]),
        not nodes.wrong,
    )


def _service(redis_url: str, faketime: Path, offset: int) -> Service:
    """A node whose clock is that many seconds off."""
    return Service(
        SESIONES_REDIS_URL=redis_url,
        SESIONES_REDIS_TIMEOUT="5",
        SESIONES_IDLE_SECONDS=str(IDLE_SECONDS),
        SESIONES_MAX_SECONDS=str(MAX_SECONDS),
        FAKETIME=f"{offset:+}s",
        # A clock that is wrong runs as any other: the monotonic one is right.
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        LD_PRELOAD=str(faketime),
    )


def _users() -> Iterator[int]:
    """Such that the ID_Sesion of their first four sessions have the same numbers of digits: else
    their answers would differ in length. No two share a bucket."""
    buckets = set[int]()
    for user in count(9_000_000_000_000_000):
        bucket = tokens.bucket_number(tokens.user_bucket(user))
        if bucket >= 2048 and bucket not in buckets:
            buckets.add(bucket)
            yield user


def _life(here: int, there: int, user: int) -> _Life:
    """Of one user, whose sessions are used on two nodes."""

    def create(node: int) -> Generator[_Request, bytes, dict[str, Any]]:
        body = {"ID_Usuario": user, "Dispositivo": "Móvil"}
        return _object((yield _Request(node, 201, "POST", "/sesiones", body=body)))

    def use(node: int, token: str, status: int = 200) -> _Request:
        return _Request(node, status, "GET", "/sesiones/self", token)

    def put(node: int, session: dict[str, Any], status: int = 200, **fields: int) -> _Request:
        return _Request(node, status, "PUT", "/sesiones", body=session | fields)

    def end(node: int, path: str, caller: str, designated: str) -> _Request:
        body = {"Token_Sesion": designated}
        return _Request(node, 200, "DELETE", f"/sesiones/{path}", caller, body)

    yield 0
    first = yield from create(here)
    second = yield from create(there)
    third = yield from create(here)
    token = first["Token_Sesion"]
    yield use(here, token)
    yield use(there, token)
    yield _Request(there, 200, "GET", "/sesiones/verificar", token)

    yield 1
    begun, used = first["Fecha_Inicio"], first["Fecha_Inicio"] + 1
    first = _object((yield use(there, token)))  # it slides
    yield put(here, first)
    yield put(there, first, Ultima_Actividad=used + 300, Fecha_Expiracion=used + 304)
    yield put(here, first, Ultima_Actividad=used - 300, Fecha_Expiracion=used - 297)
    yield put(there, first, 422, Fecha_Expiracion=used)
    yield put(here, first, 422, Fecha_Expiracion=begun + MAX_SECONDS + 1)
    first = _object((yield put(there, first, Fecha_Expiracion=begun + MAX_SECONDS)))
    yield end(here, "logout", token, second["Token_Sesion"])  # in its last second
    yield use(there, second["Token_Sesion"], 401)

    yield IDLE_SECONDS
    yield end(there, "logout", token, third["Token_Sesion"])  # it has just expired
    yield use(here, third["Token_Sesion"], 401)
    yield use(there, third["Token_Sesion"], 401)
    fourth = yield from create(there)
    yield put(here, fourth, Estado_Sesion=0)
    yield use(there, fourth["Token_Sesion"], 401)
    yield put(there, fourth)
    yield use(here, fourth["Token_Sesion"])
    yield end(here, "logoutAll", token, token)
    yield use(there, token, 401)
    yield use(here, fourth["Token_Sesion"], 401)
    yield put(there, first, 404)


class _Nodes:
    """The nodes, and what they answered. ``dates``: how far each one's Dates are from Redis's
    time; ``wrong``: answers that differ, or are not what the life expects."""

    def __init__(self, ports: Sequence[int], redis: "Redis") -> None:
        self.dates: list[set[int]] = [set() for _ in ports]
        self.wrong: list[str] = []
        self.answers = 0
        self._ports = ports
        self._redis = redis
        self._users = _users()

    def play_round(self) -> None:
        for _ in range(SLOW_ROUNDS_MAX):
            with suppress(_TooSlow):
                return self._live([*islice(self._users, len(PAIRS))])
        raise RuntimeError("the machine is too busy: not all of a second's requests fit into it")

    def _live(self, users: Sequence[int]) -> None:
        """The lives side by side, an answer each at a time, up to one that is wrong."""
        lives = [_life(*pair, user) for pair, user in zip(PAIRS, users, strict=True)]
        names: list[dict[bytes, bytes]] = [{b"%d" % user: b"USER"} for user in users]
        begun = second = self._now() + 1
        steps = [next(life) for life in lives]
        while steps:
            wanted = steps[0]
            if isinstance(wanted, int):
                second = begun + wanted
                while self._now() < second:
                    time.sleep(0.01)
                answers = [b"" for _ in lives]
            else:
                answers = [self._ask(step, second) for step in steps if not isinstance(step, int)]
            if self._now() != second:
                raise _TooSlow
            if not isinstance(wanted, int):
                seen = {
                    plain(answer, begun, known)
                    for answer, known in zip(answers, names, strict=True)
                }
                if len(seen) > 1 or not answers[0].startswith(b"HTTP/1.1 %d " % wanted.status):
                    asked = f"{wanted.method} {wanted.path}, {wanted.status}"
                    self.wrong.append(f"{asked}: {b' but '.join(sorted(seen)).decode()!r}")
                    return
            steps = []
            for life, answer in zip(lives, answers, strict=True):
                with suppress(StopIteration):
                    steps.append(life.send(answer))

    def _now(self) -> int:
        return int(self._redis.time()[0])

    def _ask(self, request: _Request, second: int) -> bytes:
        body = b"" if request.body is None else orjson.dumps(request.body)
        head = (
            f"{request.method} {request.path} HTTP/1.1\r\nHost: sesiones\r\nConnection: close\r\n"
        )
        head += f"X-Auth-Token: {request.token}\r\n" if request.token else ""
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self._ports[request.node]), 10) as connection:
            connection.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        if date := re.search(rb"\r\ndate: ([^\r]+)", answer):
            offset = parsedate_to_datetime(date[1].decode()).timestamp() - second
            self.dates[request.node].add(int(offset))
        self.answers += 1
        return answer


def plain(answer: bytes, begun: int, names: dict[bytes, bytes]) -> bytes:
    """The answer without what may differ: Date, the names of user, token and session, and the
    second in which it all began. ``names``: those known so far, which it adds to."""
    answer = re.sub(rb"\r\ndate: [^\r]+", b"", answer)
    for token in re.findall(rb"ses_[A-Za-z0-9_-]{45}", answer):
        names.setdefault(token, b"TOKEN %d" % len(names))
    for number in re.findall(rb'(?:"ID_Sesion":|x-id-sesion: )([0-9]+)', answer):
        names.setdefault(number, b"SESSION %d" % len(names))
    answer = re.sub(rb"[0-9A-Za-z_-]+", lambda word: names.get(word[0], word[0]), answer)
    return re.sub(rb"\b[0-9]{10}\b", lambda moment: b"%+d s" % (int(moment[0]) - begun), answer)


def _object(answer: bytes) -> dict[str, Any]:
    session: dict[str, Any] = orjson.loads(answer.partition(b"\r\n\r\n")[2])
    return session
