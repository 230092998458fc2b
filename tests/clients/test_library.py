"""The store as a library: its documented use, and arguments that it refuses as the API does."""

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import pytest
from redis import Redis

from sesiones import Refusal, Sesion, SessionStore
from sesiones.clients.http import SessionClient
from sesiones.sesion import INT_MAX

pytestmark = pytest.mark.anyio


class Text(str):
    """A str that formats and encodes as another one."""

    __slots__ = ()

    def __str__(self) -> str:
        return "other"

    __repr__ = __str__

    def __format__(self, _: str) -> str:
        return "other"

    def encode(self, *_: str) -> bytes:
        return b"other"


class Number(int, Enum):
    """An int that formats as its name."""

    SEVEN = 7


class Index:
    """Like an integer of numpy: not an int, but convertible to one."""

    def __index__(self) -> int:
        return 7


BAD_INTEGERS: list[Any] = [
    None,
    True,
    False,
    "7",
    b"7",
    7.0,
    Index(),
    [],
    -1,
    INT_MAX + 1,
    2**64,
    -(2**63),
]
BAD_DEVICES: list[Any] = [
    *(None, 7, b"laptop", ["laptop"], "", "x" * 513, "a\nb", "\0", "\x7f", "\x85", "\x9f"),
    *("\ud800", "a\udfff", "\ud83d\udd11"),
]
BAD_TOKENS: list[Any] = [
    *(None, True, 7, 7.5, b"ses_" + b"A" * 45, bytearray(49), [], {}, object(), Index()),
    *("", " ", "ses_", "ses_" + "A" * 44, "ses_" + "A" * 46, "ses_" + "A" * 45 + "\n"),
    *("ses_" + "A" * 44 + "é", "\ud800", "x" * 10_000, "*", "ses_#1a2b3c4d", Text("ses_"), ("a",)),
]


@contextmanager
def scripts_run(redis: Redis, count: int) -> Iterator[None]:
    """Redis runs exactly so many scripts meanwhile."""
    redis.config_resetstat()
    yield
    stats = redis.info("commandstats")
    calls = (stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))
    assert sum(calls) == count


@pytest.mark.parametrize("value", BAD_INTEGERS)
async def test_methods_refuse_a_user_that_the_api_refuses(
    store: SessionStore, redis: Redis, value: Any
) -> None:
    other = await store.create(8, "laptop")
    await store.probe(5)  # loads the scripts, so that each call runs one
    with scripts_run(redis, 1):
        refused = (
            store.create(value, "laptop"),
            store.sessions(value),
            store.end_user(value),
            store.end_user(value, 1),
            store.end_user(8, 0 if value is None else value),
            store.update(other._replace(ID_Usuario=value)),
            store.find(other.Token_Sesion),
        )
        *outcomes, found = await asyncio.gather(*refused, return_exceptions=True)
    wanted = ValueError if type(value) is int else TypeError
    assert [type(o) for o in outcomes] == [wanted] * 4 + [
        ValueError if value is None else wanted,
        wanted,
    ]
    assert isinstance(found, Sesion)
    assert found.ID_Sesion == other.ID_Sesion


@pytest.mark.parametrize("value", BAD_DEVICES)
async def test_methods_refuse_a_device_that_the_api_refuses(
    store: SessionStore, redis: Redis, value: Any
) -> None:
    other = await store.create(8, "laptop")
    await store.probe(5)  # loads the scripts, so that each call runs one
    with scripts_run(redis, 1):
        *outcomes, found = await asyncio.gather(
            store.create(7, value),
            store.update(other._replace(Dispositivo=value)),
            store.find(other.Token_Sesion),
            return_exceptions=True,
        )
    wanted = ValueError if isinstance(value, str) else TypeError
    assert [type(outcome) for outcome in outcomes] == [wanted] * 2
    assert isinstance(found, Sesion)
    assert found.ID_Sesion == other.ID_Sesion


@pytest.mark.parametrize(
    "field", ["ID_Sesion", "Fecha_Inicio", "Fecha_Expiracion", "Estado_Sesion", "Ultima_Actividad"]
)
async def test_update_refuses_what_put_refuses(
    store: SessionStore, redis: Redis, field: str
) -> None:
    sesion = await store.create(7, "laptop")
    bounds = {"ID_Sesion": [0], "Estado_Sesion": [2]}.get(field, [])
    with scripts_run(redis, 0):
        for value in BAD_INTEGERS + bounds:
            wanted = ValueError if type(value) is int else TypeError
            with pytest.raises(wanted, match=field):
                await store.update(Sesion(**sesion._asdict() | {field: value}))
        bad: Any = None
        for bad in (None, 7, b"x"):
            with pytest.raises(TypeError, match="Token_Sesion"):
                await store.update(sesion._replace(Token_Sesion=bad))
            with pytest.raises(TypeError):
                await store.update(bad)
        for text in ("", "x", sesion.Token_Sesion + "\n", "\ud800"):
            assert await store.update(sesion._replace(Token_Sesion=text)) is None


@pytest.mark.parametrize("value", BAD_TOKENS)
async def test_malformed_token_is_no_session(store: SessionStore, redis: Redis, value: Any) -> None:
    """The other checks of its batch are answered."""
    made = await store.create(7, "laptop")
    await store.probe(5)
    token = made.Token_Sesion
    with scripts_run(redis, 1):
        answers: tuple[Any, ...] = await asyncio.gather(
            store.find(value),
            store.find(token),
            store.end(value, token),
            store.end_all(value, token),
            store.end(token, value),
        )
    found, *others = answers[1], answers[0], *answers[2:]
    slid = ("Ultima_Actividad", "Fecha_Expiracion")  # the clock may have gone on a second
    assert found._replace(**{name: getattr(made, name) for name in slid}) == made
    assert others == [None, Refusal.UNAUTHENTICATED, Refusal.UNAUTHENTICATED, 0]
    assert await store.end_all(token, value) == 1


async def test_subclasses_of_int_and_str_count_by_their_value(
    store: SessionStore, redis: Redis
) -> None:
    made = await store.create(Number.SEVEN, Text("laptop"))
    assert (made.ID_Usuario, made.Dispositivo) == (7, "laptop")
    assert redis.exists("sesiones:{eQ}:u:7")
    assert len(await store.sessions(Number.SEVEN)) == 1
    given = made._replace(Dispositivo=Text("phone"), Token_Sesion=Text(made.Token_Sesion))
    assert await store.update(given._replace(ID_Usuario=Number.SEVEN)) == made._replace(
        Dispositivo="phone"
    )
    found = await store.find(Text(made.Token_Sesion))
    assert found is not None
    assert (type(found.Token_Sesion), type(found.Dispositivo)) == (str, str)
    other = await store.create(7, "laptop")
    assert await store.end(Text(made.Token_Sesion), Text(other.Token_Sesion)) == 1
    assert await store.end_all(Text(made.Token_Sesion), Text(made.Token_Sesion)) == 1


def test_create_takes_no_token() -> None:
    """A tombstone would refuse the session of a token that had one before."""
    assert list(inspect.signature(SessionStore.create).parameters) == [
        "self",
        "ID_Usuario",
        "Dispositivo",
        "login",
    ]


BAD_SETTINGS: dict[str, list[Any]] = {
    "idle_seconds": [-5, 0, True, 60.0, "60", None, 43_201],
    "max_seconds": [2**31, 0],
    "touch_seconds": [-1, False],
    "max_per_user": [0, 1_000_001],
    "at_limit": ["", "ask", None, True],
    "timeout_seconds": [0, -1, 0.0009, 61, True, float("nan"), float("inf"), None],
    "wait_replicas": [-1, True, 101],
    "key_prefix": ["a b", "", "x" * 33, "{a}", "a\n", None, b"a"],
}


@pytest.mark.parametrize(
    "settings",
    [
        *({name: value} for name, values in BAD_SETTINGS.items() for value in values),
        {"idle_seconds": 61, "max_seconds": 60},
    ],
    ids=str,
)
def test_from_url_refuses_what_the_settings_refuse(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must (not )?be"):
        SessionStore.from_url("redis://127.0.0.1", **settings)


@pytest.mark.parametrize("url", ["", "redis", "http://h", "redis://:secret@[x", None, 7, b"redis"])
def test_from_url_refuses_a_bad_url_without_repeating_it(url: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|is not") as raised:
        SessionStore.from_url(url)
    assert "secret" not in str(raised.value)


async def test_from_url_takes_the_bounds_of_the_settings() -> None:
    for settings in (
        {"idle_seconds": 1, "max_seconds": 1, "touch_seconds": 0, "max_per_user": 1},
        {"timeout_seconds": 0.001, "wait_replicas": 100, "key_prefix": "x" * 32},
        {"timeout_seconds": 60, "max_per_user": 10_000, "key_prefix": "a.b:c-d_e"},
        {"timeout_seconds": 1 / 3, "max_seconds": 2**31 - 1, "idle_seconds": 2**31 - 1},
    ):
        given: Any = settings
        await SessionStore.from_url("redis://127.0.0.1", **given).aclose()


async def test_client_asks_no_service_for_a_malformed_token() -> None:
    """No service listens there."""
    value: Any
    async with SessionClient("http://127.0.0.1:1") as client:
        for value in BAD_TOKENS:
            assert await client.find(value) is None
