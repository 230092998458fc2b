"""Connections that keep the queue and the wire in step but for one of the rules of
sesiones/redis_client/connection.py: a test of those rules must find each of them out."""

import asyncio
import contextlib
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.redis_client.connection import Argument, OnReply, PipelinedConnection, _InFlight


class _WritesItsOwnWay(PipelinedConnection):
    def send(
        self,
        arguments: tuple[Argument, ...],
        on_reply: OnReply | None = None,
        *,
        safe_to_repeat: bool = False,
        future: "asyncio.Future[Any] | None" = None,
    ) -> "asyncio.Future[Any]":
        if self.transport.is_closing():
            return super().send(arguments, on_reply, safe_to_repeat=safe_to_repeat, future=future)
        if future is None:
            future = self._loop.create_future()
        self.write(arguments, _InFlight(future, self._loop.time(), safe_to_repeat, on_reply))
        return future

    def write(self, arguments: tuple[Argument, ...], entry: _InFlight) -> None:
        raise NotImplementedError


class QueuesBeforeItPacks(_WritesItsOwnWay):
    def write(self, arguments: tuple[Argument, ...], entry: _InFlight) -> None:
        self._in_flight.append(entry)
        command = hiredis.pack_command(arguments)  # type: ignore[arg-type]
        try:
            self.transport.write(command)
        except BaseException as error:
            self.fail("not written")
            if not isinstance(error, Exception):
                raise


class IgnoresAFailedWrite(_WritesItsOwnWay):
    def write(self, arguments: tuple[Argument, ...], entry: _InFlight) -> None:
        command = hiredis.pack_command(arguments)  # type: ignore[arg-type]
        self._in_flight.append(entry)
        with contextlib.suppress(Exception):
            self.transport.write(command)


class TakesBackAFailedWrite(_WritesItsOwnWay):
    """A command whose write has raised is taken for unsent."""

    def write(self, arguments: tuple[Argument, ...], entry: _InFlight) -> None:
        command = hiredis.pack_command(arguments)  # type: ignore[arg-type]
        try:
            self.transport.write(command)
        except Exception:
            entry.future.set_exception(RedisConnectionError("not written"))
        else:
            self._in_flight.append(entry)


class ForgetsCancelledCommands(PipelinedConnection):
    """A cancelled caller loses its place in the queue."""

    def _watch(self) -> None:
        self._forget()
        super()._watch()

    def _deliver(self, reply: Any) -> None:
        self._forget()
        super()._deliver(reply)

    def _forget(self) -> None:
        for entry in [each for each in self._in_flight if each.future.cancelled()]:
            self._in_flight.remove(entry)


class CallsBackUnguarded(PipelinedConnection):
    def _deliver(self, reply: Any) -> None:
        if self._in_flight and (on_reply := self._in_flight[0].on_reply):
            future, sent_at, safe_to_repeat, _ = self._in_flight.popleft()
            if not isinstance(reply, Exception):
                reply = on_reply(reply)
            self._in_flight.appendleft(_InFlight(future, sent_at, safe_to_repeat, None))
        super()._deliver(reply)


class KeepsStrayReplies(PipelinedConnection):
    """A reply that no command waits for is passed over, and the connection stays in use."""

    def _deliver(self, reply: Any) -> None:
        if self._in_flight:
            super()._deliver(reply)


class ForgetsLateCommands(PipelinedConnection):
    """A late reply fails its own caller only, and the connection stays in use."""

    def _late(self) -> None:
        if self._in_flight and self._seconds_left() <= 0:
            future, *_ = self._in_flight.popleft()
            if not future.done():
                future.set_exception(RedisConnectionError("no reply in time"))
        self._watch()


class ForgetsRepeatableCommands(PipelinedConnection):
    """What is tried elsewhere after silence loses its place here."""

    def _late(self) -> None:
        super()._late()
        if self.silent:
            for entry in [each for each in self._in_flight if each.safe_to_repeat]:
                self._in_flight.remove(entry)


class LeavesCallersWaiting(PipelinedConnection):
    """A lost connection does not fail what is in flight."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_flight.clear()
        super().connection_lost(exc)


VARIANTS = [
    *(QueuesBeforeItPacks, ForgetsCancelledCommands, CallsBackUnguarded, IgnoresAFailedWrite),
    *(TakesBackAFailedWrite, KeepsStrayReplies, ForgetsLateCommands, ForgetsRepeatableCommands),
    LeavesCallersWaiting,
]
