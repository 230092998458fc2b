"""What a PUT changed, in the log and the metrics."""

import logging
from typing import Any

import pytest
from redis import Redis

from sesiones import tokens
from sesiones.sesion import Sesion
from sesiones.store import SessionStore
from tests.harness.metrics import counted
from tests.harness.records import age

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"Dispositivo": "e"}, "Dispositivo"),
        ({"Estado_Sesion": 0}, "Estado_Sesion"),
        ({"Estado_Sesion": 0, "Dispositivo": "e"}, "Estado_Sesion, Dispositivo"),
        ({"Ultima_Actividad": 40}, "Ultima_Actividad"),
        ({"Ultima_Actividad": -500}, None),
        ({"Fecha_Expiracion": -10}, "Fecha_Expiracion, Ventana"),
        (
            {
                "Fecha_Expiracion": 9,
                "Estado_Sesion": 0,
                "Ultima_Actividad": 8,
                "Dispositivo": "e",
            },
            "Fecha_Expiracion, Estado_Sesion, Ultima_Actividad, Dispositivo, Ventana",
        ),
    ],
    ids=str,
)
async def test_update_logs_and_counts_what_it_changed(
    redis: Redis,
    store: SessionStore,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    named: str | None,
) -> None:
    """Dates are in seconds after the stored ones. An update that changes nothing is not logged."""
    sesion = age(redis, await store.create(7, "d"), 100)
    caplog.set_level(logging.INFO)
    caplog.clear()
    given = sesion._replace(
        **{
            field: value + getattr(sesion, field)
            if field in ("Fecha_Expiracion", "Ultima_Actividad")
            else value
            for field, value in changes.items()
        }
    )
    updated = await store.update(given)
    assert isinstance(updated, Sesion)
    assert await store.update(given) == updated  # it changes nothing
    ventana = updated.Fecha_Expiracion - updated.Ultima_Actividad
    values = {**updated._asdict(), "Ventana": ventana}
    changed = ", ".join(
        field if field == "Dispositivo" else f"{field}={values[field]}"
        for field in (named or "").split(", ")
        if field
    )
    name = tokens.fingerprint(sesion.Token_Sesion)
    line = f"changed session {sesion.ID_Sesion} of user 7, ses_#{name}: {changed} by SessionStore"
    assert caplog.messages == ([line] if named else [])
    count = counted(store.metrics).get("sesiones_sessions_updated_total[]", 0)
    assert count == len(caplog.messages)
    for record in caplog.records:
        fields = {"event": "changed", "changed": changed, "actor": "SessionStore"}
        assert fields.items() <= vars(record).items()


@pytest.mark.parametrize("field", ["ID_Usuario", "Fecha_Expiracion"])
async def test_refused_update_is_neither_logged_nor_counted(
    store: SessionStore, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    sesion = await store.create(7, "d")
    caplog.set_level(logging.INFO)
    caplog.clear()
    wrong: dict[str, Any] = {"ID_Usuario": 8, "Fecha_Expiracion": 0}
    answer = await store.update(sesion._replace(**{field: wrong[field], "Dispositivo": "e"}))
    assert not isinstance(answer, Sesion)
    assert caplog.messages == []
    assert "sesiones_sessions_updated_total[]" not in counted(store.metrics)
