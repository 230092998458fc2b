"""tests/harness/traffic.py finds every answer out that contradicts what was acknowledged."""

from typing import Any

import orjson
import pytest

from sesiones import tokens
from tests.harness import traffic as harness
from tests.harness.client import Client
from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply, Service
from tests.harness.traffic import BACK, LOST, OVERWRITTEN, Traffic

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000
SESSION = {
    "ID_Sesion": 4097,
    "ID_Usuario": 1,
    "Token_Sesion": tokens.make(1),
    "Fecha_Inicio": NOW,
    "Fecha_Expiracion": NOW + 1800,
    "Ultima_Actividad": NOW,
    "Dispositivo": "laptop of 1",
}
HEADERS = {"x-id-usuario": "1", "x-id-sesion": "4097", "x-fecha-expiracion": str(NOW + 1800)}


def answer(status: int, **changes: object) -> Reply:
    return Reply(status, {}, orjson.dumps(SESSION | changes))


async def test_an_acknowledgement_without_the_deed_is_found_by_verify(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Service(SESIONES_REDIS_URL=redis_server.url) as service:
        for operation, wrong in ("create", LOST), ("update", OVERWRITTEN), ("logout", BACK):
            traffic = Traffic([service.port], users=1)
            await traffic.one("create")
            (made,) = traffic._objects.values()
            changed = {
                "create": {"Token_Sesion": tokens.make(1)},
                "update": {"Dispositivo": "tablet of 1"},
                "logout": {},
            }[operation]
            status = 201 if operation == "create" else 200
            pretended = Reply(status, {}, orjson.dumps(made | changed))

            async def ask(*_: object, reply: Reply = pretended) -> Reply:
                return reply

            with monkeypatch.context() as patch:
                patch.setattr(Client, "ask", ask)
                await traffic.one(operation)
            assert not traffic.wrong
            await traffic.verify()
            traffic.close()
            assert set(traffic.wrong) == {wrong}


OTHERS: list[dict[str, object]] = [{"ID_Usuario": 8}, {"Dispositivo": "laptop of 8"}]
ANOTHER_TOKEN: dict[str, object] = {"Token_Sesion": tokens.make(1)}


@pytest.mark.parametrize(
    ("operation", "path", "wrong"),
    [
        *(("check", "/sesiones/self", answer(200, **o)) for o in (*OTHERS, ANOTHER_TOKEN)),
        *(("create", "", answer(201, **other)) for other in OTHERS),
        *(("update", "", answer(200, **other)) for other in (*OTHERS, ANOTHER_TOKEN)),
        ("check", "/sesiones/verificar", Reply(200, HEADERS | {"x-id-usuario": "8"}, b"")),
        ("check", "/sesiones/verificar", Reply(200, HEADERS | {"x-id-sesion": "8"}, b"")),
        ("check", "/sesiones/verificar", Reply(200, {}, b"")),
    ],
)
async def test_an_answer_of_another_user_or_session_is_found_out(
    monkeypatch: pytest.MonkeyPatch, operation: str, path: str, wrong: Reply
) -> None:
    right = Reply(200, HEADERS, b"") if path.endswith("verificar") else answer(200)
    unavailable = Reply(503, {}, b"")
    replies = iter([answer(201), right, unavailable, wrong])

    async def ask(*_: Any) -> Reply:
        return next(replies)

    monkeypatch.setattr(Client, "ask", ask)
    monkeypatch.setattr(harness, "CHECKS", (path or "/sesiones/self",))
    traffic = Traffic([1], users=1)
    for each in "create", "check", "check":
        await traffic.one(each)
    assert not traffic.wrong
    await traffic.one(operation)
    assert len(traffic.wrong) == 1
