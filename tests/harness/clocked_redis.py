"""Redis in this process, on a clock that only the test moves: fakeredis behind Commands."""

import time
from collections.abc import Sequence
from typing import Any

import fakeredis
import pytest

from sesiones.redis_client import Argument, Execute, Listener, OnReply
from sesiones.sesion import Sesion

START = 1_700_000_000


class Clock:
    """Stands in for the time module wherever fakeredis looks at the time: for a key's expiry
    (once a command), for relative ones, and for TIME, in a script too."""

    def __init__(self) -> None:
        self.now: float = START

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for module in ("_helpers", "_socket._base", "commands_mixins.server_mixin"):
            patch.setattr(f"fakeredis.{module}.time", self)


class ClockedRedis:
    """Commands on fakeredis, which cannot load a script whose first line is `#!lua`."""

    batch_max = 256
    in_flight_max = 2
    node_of = None

    def __init__(self) -> None:
        self.redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())

    async def execute(
        self,
        *arguments: Argument,
        keys: Sequence[str] = (),
        reads: bool = False,
        replicas: int = 0,
        safe_to_repeat: bool = False,
        on_reply: OnReply | None = None,
    ) -> Any:
        reply = await self._execute(*arguments)
        return reply if on_reply is None else on_reply(reply)

    async def _execute(self, *arguments: Argument) -> Any:
        if arguments[0] == "EVAL":
            source = str(arguments[1])
            assert source.startswith("#!lua")
            arguments = ("EVAL", source.partition("\n")[2], *arguments[2:])
        return self.redis.execute_command(*arguments)  # type: ignore[no-untyped-call]

    async def execute_on_master(
        self, *arguments: Argument, keys: Sequence[str], safe_to_repeat: bool = False
    ) -> Any:
        return await self.execute(*arguments)

    async def masters(self) -> dict[str, Execute]:
        return {"redis": self.execute}

    async def sentinels(self) -> dict[str, Execute]:
        return {}

    def last_answered_sent_at(self, bucket: str) -> float:
        return time.monotonic()

    def on_owner_change(self, listener: Listener) -> None:
        """There is no connection that could be lost."""

    def reset(self) -> None:
        """Nor one to drop."""

    async def aclose(self) -> None:
        self.redis.close()


def with_dates(sesion: Sesion, expiracion: int, actividad: int) -> Sesion:
    """The session with other dates, from START."""
    return sesion._replace(Fecha_Expiracion=START + expiracion, Ultima_Actividad=START + actividad)
