"""Locust's users of the service; each keeps a ledger, and what contradicts it is a failure.

    locust -f scripts/locustfile.py                              the web UI on port 8089
    locust -f scripts/locustfile.py --headless -u 200 -r 50 -t 60s
    locust -f scripts/locustfile.py SteadyChecks --user-rate 5   one kind of users

Without names all kinds run, in the proportion of their weights. A user does --user-rate tasks a
second, however long the replies take: with -u of them, that many times the rate arrives. The
tokens are those of `python -m scripts.seed`; the other sessions are of users that no application
has, and expire. SESIONES_SERVICE_KEY, or the file of SESIONES_SERVICE_KEY_FILE, is for POST and
PUT.
"""

import os
import random
import time
from collections import deque
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task

from scripts.seed import FILE, FIRST_USER, SeedError, Session, read_tokens
from sesiones import tokens
from sesiones.sesion import INT_MAX
from sesiones.settings import Settings, SettingsError
from tests.harness.ledger import Ledger, numbers

SEEDS_MAX = 10**9  # seed.py's users are these many from FIRST_USER on
DEVICES = ("laptop", "tablet", "phone", "television")

seeds: list[Session] = []
seeds_ledger = Ledger()
"""Of all users: they share the sessions of the file, and none ends one."""
service_key: dict[str, str] = {}
"""The header with the service key, if there is one."""


def add_options(parser: Any) -> None:
    parser.add_argument(
        "--user-rate", type=float, default=1.0, help="tasks of a user in a second (default: 1)"
    )
    parser.add_argument("--tokens", default=str(FILE), help=f"of seed.py (default: {FILE})")


def read_seeds(environment: Any, **_: Any) -> None:
    if environment.parsed_options.user_rate <= 0:
        raise SystemExit("locustfile: --user-rate must be above 0")
    try:
        seeds[:] = read_tokens(Path(environment.parsed_options.tokens))
    except (SeedError, OSError) as error:
        raise SystemExit(f"locustfile: {error}; see python -m scripts.seed") from None
    if not seeds:
        raise SystemExit("locustfile: there are no tokens in the file; see python -m scripts.seed")
    for user, token in seeds:
        seeds_ledger.add(token, {"ID_Usuario": user})


def read_service_key(**_: Any) -> None:
    variables = {"SESIONES_SERVICE_KEY", "SESIONES_SERVICE_KEY_FILE"} & os.environ.keys()
    try:
        settings = Settings.read({name: os.environ[name] for name in variables}, {})
    except SettingsError as error:
        raise SystemExit(f"locustfile: {error}") from None
    if settings.service_key:
        service_key["Authorization"] = f"Bearer {settings.service_key[0]}"


events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(read_seeds)  # type: ignore[no-untyped-call]
events.init.add_listener(read_service_key)  # type: ignore[no-untyped-call]


def unexpected(status: int) -> str:
    """What is wrong with that status; Locust's 0 means that there was no response."""
    return f"status {status}" if status else "no reply"


class Client(FastHttpUser):
    """What every kind of user does in the same way."""

    abstract = True
    host = "http://127.0.0.1:8000"
    network_timeout = connection_timeout = 10.0

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.pace = constant_throughput(environment.parsed_options.user_rate)
        self.ledger = Ledger()
        self.ID_Usuario = random.randrange(FIRST_USER + SEEDS_MAX, INT_MAX)

    def on_start(self) -> None:
        # Not all at the same moment of each period. (Locust makes it gevent's sleep.)
        time.sleep(random.random() / self.environment.parsed_options.user_rate)

    def wait_time(self) -> float:
        wait: float = self.pace(self)
        return wait

    def ask(
        self, method: str, path: str, token: str, ends: tuple[str, ...] = (), **rest: Any
    ) -> dict[str, Any] | None:
        """A request about the session of the token: the object that a 200 brought."""
        ledger = rest.pop("ledger", self.ledger)
        sent = ledger.sent(token, ends)
        headers = rest.pop("headers", {"x-auth-token": token})
        with self.client.request(
            method, path, headers=headers, catch_response=True, allow_redirects=False, **rest
        ) as response:
            status, body = response.status_code, response.content or b""
            try:
                wrong = ledger.judge(sent, status, numbers(response.headers or {}, body))
            except ValueError:
                wrong = "200 with a body that is no session" if status == 200 else None
            if wrong is None and status not in (200, 401):
                wrong = unexpected(status)
            if wrong is None:
                response.success()
            else:
                response.failure(wrong)
            return response.json() if status == 200 and body and wrong is None else None

    def create(self) -> str | None:
        """A new session of the user: its token."""
        with self.client.request(
            "POST",
            "/sesiones",
            json={"ID_Usuario": self.ID_Usuario, "Dispositivo": random.choice(DEVICES)},
            headers=service_key,
            catch_response=True,
        ) as response:
            try:
                sesion = response.json() if response.status_code == 201 else {}
                token: str = sesion["Token_Sesion"]
                known = numbers({}, response.content)
                if known["ID_Usuario"] != self.ID_Usuario:
                    raise ValueError("another user's")
            except (LookupError, TypeError, ValueError):
                status = response.status_code
                why = "201 without the session" if status == 201 else unexpected(status)
                response.failure(why)
                return None
            response.success()
        self.ledger.add(token, known)
        return token

    def check(self, token: str, ledger: Ledger | None = None) -> None:
        path = random.choice(("/sesiones/self", "/sesiones/verificar"))
        self.ask("GET", path, token, ledger=ledger or self.ledger)

    def end(self, caller: str, path: str, designated: str, ends: tuple[str, ...]) -> None:
        self.ask("DELETE", path, caller, ends, json={"Token_Sesion": designated})


class SteadyChecks(Client):
    """Gateways: checks of the seeded sessions, of which a few are asked for often (Zipf's law)."""

    weight = 10

    @task
    def check_popular(self) -> None:
        # n^u is of rank k with a probability of about 1/k.
        _, token = seeds[int(len(seeds) ** random.random()) - 1]
        self.check(token, seeds_ledger)


class DailyMix(Client):
    """A person with a few devices. A session that was ended is asked for again: it stays ended."""

    weight = 6

    def on_start(self) -> None:
        super().on_start()
        self.live: list[str] = []
        self.gone: deque[str] = deque(maxlen=8)
        self.log_in()

    def on_stop(self) -> None:
        self.log_out_everywhere()

    @task(60)
    def use(self) -> None:
        if self.live:
            self.check(random.choice(self.live))
        else:
            self.log_in()

    @task(6)
    def log_in(self) -> None:
        if token := self.create():
            self.live.append(token)

    @task(4)
    def rename_device(self) -> None:
        if not self.live:
            return
        token = random.choice(self.live)
        if sesion := self.ask("GET", "/sesiones/self", token):
            sesion["Dispositivo"] = random.choice(DEVICES)
            self.ask("PUT", "/sesiones", token, json=sesion, headers=service_key)

    @task(4)
    def log_out(self) -> None:
        if self.live:
            caller = random.choice(self.live)
            designated = random.choice(self.live)
            self.end(caller, "/sesiones/logout", designated, (designated,))
            self.live.remove(designated)
            self.gone.append(designated)

    @task(1)
    def log_out_everywhere(self) -> None:
        if self.live:
            caller = self.live[0]
            self.end(caller, "/sesiones/logoutAll", caller, tuple(self.live))
            self.gone.extend(self.live)
            self.live.clear()

    @task(6)
    def use_what_was_ended(self) -> None:
        if self.gone:
            self.check(random.choice(self.gone))


class LoginStorm(Client):
    """Many logins at once: each makes a session of a new user, and uses it once."""

    weight = 1

    @task
    def log_in(self) -> None:
        self.ID_Usuario = random.randrange(FIRST_USER + SEEDS_MAX, INT_MAX)
        if token := self.create():
            self.check(token)
            self.ledger.forget(token)


class LogoutAllStorm(Client):
    """Many logoutAlls at once: each ends a few sessions of one user, which are then tried."""

    weight = 1

    @task
    def log_out_everywhere(self) -> None:
        made = tuple(token for _ in DEVICES if (token := self.create()))
        if made:
            self.check(made[-1])
            self.end(made[0], "/sesiones/logoutAll", made[0], made)
        for token in made:
            self.check(token)
            self.ledger.forget(token)


class Attacker(Client):
    """Guesses tokens: well-formed ones of seeded users, and real ones that are a little wrong."""

    weight = 1

    @task
    def guess(self) -> None:
        user, token = random.choice(seeds)
        guesses = tokens.make(user), token[:-1], token + "A", token.swapcase(), ""
        with self.client.get(
            "/sesiones/verificar",
            headers={"x-auth-token": random.choice(guesses)},
            name="/sesiones/verificar (a guess)",
            catch_response=True,
        ) as response:
            if response.status_code == 200:
                response.failure("200 for a guessed token")
            elif response.status_code == 401:
                response.success()
            else:
                response.failure(unexpected(response.status_code))
