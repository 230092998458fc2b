"""When a connection is read, and how slowly its client may read: uvicorn's flow control, with
bounds for what waits."""

import asyncio
import fcntl
import sys
import termios
from collections.abc import Sized
from contextlib import suppress
from functools import partial

from uvicorn.protocols.http.flow_control import FlowControl

from sesiones.http.sockets import SEND_SECONDS
from sesiones.tasks import ReadFirstTimer

SEND_BYTES_MIN = 16 * 1024
"""How much a client must receive in SEND_SECONDS, while more is to be sent than buffers hold. With
a byte now and then it could hold the memory of an answer without end."""


class Flow(FlowControl):
    """Reads nothing while requests wait: uvicorn would go on after every answer, and whenever an
    endpoint wants a body, and a client could queue requests without end. Cuts the connection of a
    client that hardly reads."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting
        self._look: ReadFirstTimer | None = None

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_client()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._look is not None:
            self._look.cancel()

    def _watch_client(self) -> None:
        loop = asyncio.get_running_loop()
        look = partial(self._look_at_client, self._unsent_bytes())
        self._look = ReadFirstTimer(loop, loop.time() + SEND_SECONDS, look)

    def _look_at_client(self, unsent_before: int) -> None:
        if unsent_before - self._unsent_bytes() < SEND_BYTES_MIN:
            self._transport.abort()
        else:
            self._watch_client()

    def _unsent_bytes(self) -> int:
        """What the client has not received. The kernel, which holds up to 4 MiB of it, takes more
        only when it has sent a third of that, so its part counts too."""
        unsent = self._transport.get_write_buffer_size()
        with suppress(OSError):  # not on Linux
            connection = self._transport.get_extra_info("socket")
            queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
            unsent += int.from_bytes(queued, sys.byteorder)
        return unsent
