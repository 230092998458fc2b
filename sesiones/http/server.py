"""Serving: uvicorn, start and stop."""

import asyncio
import faulthandler
import functools
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal

import uvicorn

from sesiones import logs, signals
from sesiones.http.app import create_app
from sesiones.http.sockets import ListenError, accept_waiting
from sesiones.http.watch import Watch
from sesiones.http.workers import BEAT_SECONDS, Supervisor
from sesiones.metrics import ProcessSlots
from sesiones.settings import Settings, warnings
from sesiones.store.near_cache import InvalidationTable

IS_KNOWN_UVICORN = uvicorn.__version__.startswith("0.54.")
if IS_KNOWN_UVICORN:
    # These rely on internals of uvicorn. They are imported before serve() handles signals, because
    # an exception that a handler raises in the middle of an import can be lost.
    from sesiones.http.fast_check import FastCheckProtocol
    from sesiones.http.protocol import HttpProtocol

logger = logging.getLogger("sesiones.server")

KEEP_ALIVE_SECONDS = 75
"""Longer than gateways keep idle connections, so that the gateway closes them first. Otherwise it
could send a request on a connection that the service is just closing."""

STOP_SECONDS = 8
"""The time from SIGTERM to the end of the process, whatever it is doing."""
GRACE_SECONDS = 7
"""The part of it that requests in flight may take."""
KILL_SECONDS = 7.5
"""The time from SIGTERM until workers that have not ended are killed."""

FILES_MIN = 64
"""With fewer open files an event loop cannot even be ended."""


def serve(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Serve on the sockets until SIGTERM, SIGINT or SIGHUP: then stop accepting, answer what is in
    flight or on its way and close Redis.

    Without a service key POST and PUT are open: listen() made sure that only this machine can
    connect. Raises ListenError.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES_MIN:
        raise ListenError(
            f"cannot serve with at most {files} open files: allow {FILES_MIN} at least (ulimit -n)"
        )
    logs.set_up(settings.log_format, settings.log_level)
    for warning in warnings(settings, os.environ, sys.argv):
        logger.warning(warning)
    try:
        with Watch(settings):
            if settings.workers > 1:
                table = InvalidationTable() if settings.cache_seconds else None
                supervisor = Supervisor(
                    *(settings.workers, KILL_SECONDS, _work, listeners),
                    *(settings, ProcessSlots(), table),
                )
                signals.on_stop(supervisor.stop)
                run = supervisor.run
            else:
                server = _Server(_config(settings))
                signals.on_stop(server.handle_exit)
                run = functools.partial(server.run, list(listeners))
            for listener in listeners:
                logger.info("listening on %s", listener.getsockname())
            run()
    except OSError as error:  # too many open files, for instance
        raise ListenError(f"cannot serve: {error.strerror or error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def _work(
    heartbeat: socket.socket,
    listeners: Sequence[socket.socket],
    settings: Settings,
    slots: ProcessSlots,
    table: InvalidationTable | None,
) -> None:
    """A worker process, which ends when the supervisor's end of the heartbeat socket is closed."""
    logs.set_up(settings.log_format, settings.log_level)
    code = 1
    try:
        server = _Server(_config(settings, slots, table), heartbeat)
        signals.on_stop(server.handle_exit)
        signals.release()
        server.run(list(listeners))
        code = 0
    except OSError as error:
        logger.error("the worker cannot serve: %s", error)
    except Exception:
        logger.exception("the worker cannot serve")
    signals.end(code)


def _config(
    settings: Settings,
    slots: ProcessSlots | None = None,
    table: InvalidationTable | None = None,
) -> uvicorn.Config:
    return uvicorn.Config(
        functools.partial(create_app, settings, open_without_key=True, slots=slots, table=table),
        factory=True,
        http=_protocol(settings),
        ws="none",
        log_config=None,
        access_log=False,  # traffic.py writes it
        server_header=False,
        proxy_headers=settings.forwarded_allow_ips is not None,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, heartbeat: socket.socket | None = None) -> None:
        super().__init__(config)
        self._heartbeat = heartbeat
        self._devnull = os.open(os.devnull, os.O_WRONLY)
        # Never closed: uvloop would wait for names that are being looked up, like the interpreter
        # at its end (signals.end()).
        self._runner = asyncio.Runner(loop_factory=config.get_loop_factory())

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        self._runner.run(self.serve(sockets))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._heartbeat is not None:
            loop, heartbeat = asyncio.get_running_loop(), self._heartbeat
            heartbeat.setblocking(False)
            loop.add_reader(heartbeat, self._supervisor_is_gone, heartbeat)
            self._beat(heartbeat)
        await super().startup(sockets)
        # A full garbage collection is a pause: 20 ms for the objects that exist now, which stay,
        # and 50 ms for a thousand slow bodies. Hardly any garbage needs one.
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], 100)

    def _beat(self, heartbeat: socket.socket) -> None:
        with suppress(OSError):  # the socket is full while the supervisor is stopped
            heartbeat.send(b".")
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat, heartbeat)

    def _supervisor_is_gone(self, heartbeat: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(heartbeat)
        logger.error("the first process is gone: this worker ends")
        self.handle_exit(signal.SIGTERM, None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # serve() has set the handlers, which stay: uvicorn would raise the signal again at the end.
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            # faulthandler's thread ends the process even if the event loop hangs.
            faulthandler.dump_traceback_later(STOP_SECONDS, exit=True, file=self._devnull)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Closing a listening socket resets the connections that were not accepted yet.
        accepted = [
            connection for listener in sockets or () for connection in accept_waiting(listener)
        ]
        for closing in *self.servers, *(sockets or ()):
            closing.close()
        for connection in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(0)  # until uvicorn knows the connections that uvloop has just accepted
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        protocol: type[asyncio.Protocol] = self.config.http_protocol_class
        return protocol(
            config=self.config,  # type: ignore[call-arg]
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def _protocol(settings: Settings) -> type[asyncio.Protocol] | Literal["httptools"]:
    """The class that speaks HTTP. This package's classes rely on internals of one version of
    uvicorn, which another version may lack; then uvicorn's own class serves."""
    if not IS_KNOWN_UVICORN:
        logger.warning(
            "uvicorn %s is not 0.54, on whose internals sesiones relies: uvicorn's own protocol "
            "serves, without the fast check and the limits for requests and clients",
            uvicorn.__version__,
        )
        return "httptools"
    return FastCheckProtocol if settings.http == "fast" else HttpProtocol
