"""The operations that need no token."""

import pytest

from sesiones import UserSession, tokens
from sesiones.store import SessionStore

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_listed_session_has_a_fingerprint_and_no_token(store: SessionStore) -> None:
    made = await store.create(7, "laptop")
    (listed,) = await store.sessions(7)
    assert type(listed) is UserSession
    fields = made._asdict()
    fingerprint = tokens.fingerprint(fields.pop("Token_Sesion"))
    assert listed._asdict() == fields | {"fingerprint": fingerprint, "Actual": None}
    assert made.Token_Sesion not in repr(listed)


async def test_inactive_session_is_listed(store: SessionStore) -> None:
    made = await store.create(7, "laptop")
    await store.update(made._replace(Estado_Sesion=0))
    assert [listed.Estado_Sesion for listed in await store.sessions(7)] == [0]
