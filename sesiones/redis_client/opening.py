"""Opens a connection to Redis, with redis-py."""

import asyncio
import socket

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sesiones.tasks import background, retrieve_exception


async def open_connection(pool: ConnectionPool) -> AbstractConnection:
    """A new connection of redis-py's."""
    opened: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    if host := getattr(opened, "host", None):
        await _resolve(host, opened.port)  # type: ignore[attr-defined]
    try:
        await opened.connect()  # type: ignore[no-untyped-call]
    except RedisTimeoutError as error:
        seconds = opened.socket_connect_timeout
        raise RedisTimeoutError(f"no connection in {seconds:g} s") from error
    reader, writer = opened._reader, opened._writer
    # asyncio tells the end of input once only, and may have told it to redis-py's reader.
    if reader is None or writer is None or writer.transport.is_closing() or reader.at_eof():
        await opened.disconnect(nowait=True)
        raise RedisConnectionError("closed as soon as it was open")
    return opened


async def _resolve(host: str, port: int) -> None:
    """Look the name up, however long that takes. Raises RedisConnectionError.

    redis-py looks it up again, but within its timeout, and cancels a lookup that takes longer. When
    such a lookup fails, uvloop logs "exception was never retrieved".
    """
    loop = asyncio.get_running_loop()
    lookup = background(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    lookup.add_done_callback(retrieve_exception)
    try:
        await asyncio.shield(lookup)
    except (OSError, RuntimeError, UnicodeError) as error:  # asyncio's lookup needs a thread
        raise RedisConnectionError(f"{host} cannot be resolved: {error}") from None
