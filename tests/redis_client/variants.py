"""Connections that keep the queue and the wire in step but for one of the rules of
sesiones/redis_client/connection.py: a test of those rules must find each of them out."""

import asyncio
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError

from sesiones.redis_client.connection import Argument, OnReply, PipelinedConnection, _InFlight


class QueuesBeforeItPacks(PipelinedConnection):
    def send(
        self,
        arguments: tuple[Argument, ...],
        on_reply: OnReply | None = None,
        *,
        repeatable: bool = False,
    ) -> "asyncio.Future[Any]":
        if self.transport.is_closing():
            return super().send(arguments, on_reply, repeatable=repeatable)
        future: asyncio.Future[Any] = self._loop.create_future()
        sent_at = self._loop.time()
        self._in_flight.append(_InFlight(future, sent_at, repeatable, on_reply))
        command = hiredis.pack_command(arguments)  # type: ignore[arg-type]
        try:
            self.transport.write(command)
        except BaseException as error:
            self.fail("not written")
            if not isinstance(error, Exception):
                raise
        return future


class ForgetsWhoWasCancelled(PipelinedConnection):
    def send(
        self,
        arguments: tuple[Argument, ...],
        on_reply: OnReply | None = None,
        *,
        repeatable: bool = False,
    ) -> "asyncio.Future[Any]":
        future = super().send(arguments, on_reply, repeatable=repeatable)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: "asyncio.Future[Any]") -> None:
        if future.cancelled():
            for entry in [each for each in self._in_flight if each.future is future]:
                self._in_flight.remove(entry)


class CallsBackUnguarded(PipelinedConnection):
    def _deliver(self, reply: Any) -> None:
        if self._in_flight and (on_reply := self._in_flight[0].on_reply):
            future, sent_at, repeatable, _ = self._in_flight.popleft()
            if not isinstance(reply, Exception):
                reply = on_reply(reply)
            self._in_flight.appendleft(_InFlight(future, sent_at, repeatable, None))
        super()._deliver(reply)


class IgnoresAFailedWrite(PipelinedConnection):
    def send(
        self,
        arguments: tuple[Argument, ...],
        on_reply: OnReply | None = None,
        *,
        repeatable: bool = False,
    ) -> "asyncio.Future[Any]":
        command = hiredis.pack_command(arguments)  # type: ignore[arg-type]
        if self.transport.is_closing():
            return super().send(arguments, on_reply, repeatable=repeatable)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._in_flight.append(_InFlight(future, self._loop.time(), repeatable, on_reply))
        try:
            self.transport.write(command)
        except Exception:
            return future
        return future


class TakesBackAFailedWrite(PipelinedConnection):
    """As if nothing were out of a command whose write has raised."""

    def send(
        self,
        arguments: tuple[Argument, ...],
        on_reply: OnReply | None = None,
        *,
        repeatable: bool = False,
    ) -> "asyncio.Future[Any]":
        command = hiredis.pack_command(arguments)  # type: ignore[arg-type]
        if self.transport.is_closing():
            return super().send(arguments, on_reply, repeatable=repeatable)
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            self.transport.write(command)
        except Exception:
            future.set_exception(RedisConnectionError("not written"))
            return future
        self._in_flight.append(_InFlight(future, self._loop.time(), repeatable, on_reply))
        return future


class KeepsStrayReplies(PipelinedConnection):
    """A reply that no command waits for is passed over, and the connection stays in use."""

    def _deliver(self, reply: Any) -> None:
        if self._in_flight:
            super()._deliver(reply)


class ForgetsTheLate(PipelinedConnection):
    """A late reply costs its caller alone."""

    def _late(self) -> None:
        if self._in_flight and self._seconds_left() <= 0:
            future, *_ = self._in_flight.popleft()
            if not future.done():
                future.set_exception(RedisConnectionError("no reply in time"))
        self._watch()


class ForgetsTheRepeatable(PipelinedConnection):
    """What is tried elsewhere after silence loses its place here."""

    def _late(self) -> None:
        super()._late()
        if self.silent:
            for entry in [each for each in self._in_flight if each.repeatable]:
                self._in_flight.remove(entry)


class LeavesCallersWaiting(PipelinedConnection):
    """A lost connection does not fail what is in flight."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_flight.clear()
        super().connection_lost(exc)


VARIANTS = [
    QueuesBeforeItPacks,
    ForgetsWhoWasCancelled,
    CallsBackUnguarded,
    IgnoresAFailedWrite,
    TakesBackAFailedWrite,
    KeepsStrayReplies,
    ForgetsTheLate,
    ForgetsTheRepeatable,
    LeavesCallersWaiting,
]
