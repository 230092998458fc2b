"""Runs scripts on one event loop's connections: by a deadline, with a second try, and with a line
in the log when an outage begins and when it is over."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sesiones.metrics import REDIS_ERRORS, Metrics
from sesiones.redis_client import Argument, Commands, Execute, OnReply
from sesiones.redis_client.cluster import SlotMovedError
from sesiones.redis_client.connection import Sent, SilentError, described
from sesiones.redis_client.single import UnconfirmedError
from sesiones.sesion import StoreUnavailable
from sesiones.store import scripts
from sesiones.store.scripts import MismatchedReplyError, Script, untagged
from sesiones.tasks import MALFORMED_REPLY_ERRORS, Deadline, FallbackFuture

logger = logging.getLogger("sesiones.store")

MOVING_SECONDS = 0.01
"""Between two tries of a call whose keys are being moved from one node of a Cluster to another."""
EXISTS_MAX = 8
"""Scripts that SCRIPT EXISTS asks for at a time. Redis takes no command of more than ten words from
a client that has to authenticate first, and its error would not say that a password is missing."""
MALFORMED_REPLY = "a reply that no script of ours gives"


class WritesRefused(StoreUnavailable):
    """Redis answers, but takes no writes."""


class WritesSilent(StoreUnavailable):
    """A call that may write has had no answer in half of its time: the server does not answer at
    all, or holds back writes (CLIENT PAUSE, a coordinated failover)."""


class Outage:
    """Logs the first failure of an outage, not each of its thousands, and its end: the first
    success after a second without a failure."""

    def __init__(self, begin: str, end: str) -> None:
        self._begin, self._end = begin, end
        self.failing = False
        self._began_at = self._failed_at = 0.0

    def failed(self, reason: str) -> None:
        self._failed_at = time.monotonic()
        if not self.failing:
            logger.error("%s: %s", self._begin, reason)
            self.failing, self._began_at = True, self._failed_at

    def succeeded(self) -> None:
        now = time.monotonic()
        if self.failing and now - self._failed_at > 1:
            logger.info("%s, after %.1f s", self._end, now - self._began_at)
            self.failing = False


class Outages:
    """The outages of a store, whatever event loop they are seen in."""

    def __init__(self) -> None:
        self.redis = Outage("Redis is unavailable", "Redis is available again")
        self.confirmation = Outage("writes are not confirmed", "writes are confirmed again")


class ScriptRunner:
    """Runs scripts on one event loop's connections; each run raises StoreUnavailable when Redis
    does not answer in time or refuses."""

    def __init__(
        self,
        main: Commands,
        confirmed_writes: Commands,
        degraded_reads: Commands,
        *,
        wait_replicas: int,
        timeout_seconds: float,
        why_seconds: int,
        actor: str,
        outages: Outages,
        metrics: Metrics,
    ) -> None:
        """``main``: for checks and everything that the other two are not for.
        ``confirmed_writes``: for calls that wait for replicas, because a check must not wait behind
        one. Without WAIT, it is ``main``. ``degraded_reads``: for checks while Redis takes no
        writes, because a write that Redis holds back (CLIENT PAUSE) holds up everything that is
        sent behind it on its connection. ``actor``: who asks for what needs no token."""
        self.main = main
        self.confirmed_writes = confirmed_writes
        self.degraded_reads = degraded_reads
        self.ending_sessions = {main, confirmed_writes}
        """Those through which sessions are ended."""
        self._all_commands = {main, confirmed_writes, degraded_reads}
        self._wait_replicas = wait_replicas
        self.timeout_seconds = timeout_seconds
        self._why_seconds = why_seconds
        self.actor = actor
        self._outages = outages
        self._metrics = metrics
        self._closed = False

    async def write(
        self,
        script: Script,
        keys: list[str],
        *arguments: Argument,
        actor: str | None = None,
        on_reply: OnReply,
        tries: int = 2,
    ) -> Any:
        """What ``on_reply`` makes of the script's reply, once enough replicas have what the script
        wrote. ``on_reply`` is called even if they do not, and even if the caller was cancelled.
        ``actor``: who asks for this; None: who asks for what needs no token."""
        by = self.actor if actor is None else actor
        execute = partial(self.confirmed_writes.execute, replicas=self._wait_replicas)
        result = await self.run(
            script, keys, *arguments, execute=execute, tries=tries, on_reply=on_reply, actor=by
        )
        self._outages.confirmation.succeeded()
        return result

    async def run(
        self,
        script: Script,
        keys: list[str],
        *arguments: Argument,
        execute: Execute | None = None,
        tries: int = 2,
        deadline: float | None = None,
        on_reply: OnReply | None = None,
        actor: str = "",
        sent: Sent | None = None,
    ) -> Any:
        """The script's reply, or what ``on_reply`` makes of it, by the deadline in the loop's time,
        or within ``timeout_seconds``. A second try follows at once, because Redis may have closed
        the connection.

        A script that has a read-only twin gives up early, because its caller can run the twin
        instead: it raises SlotMovedError when its keys are not all on one node, and WritesSilent
        when the server has sent nothing for half of the time. Every other script waits until the
        keys are on one node, and uses all of its time.

        ``sent``: the first try, if send() has made that.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self.timeout_seconds
        evaluate = partial(
            scripts.evaluate,
            execute or self.main.execute,
            script,
            keys,
            *arguments,
            why_seconds=self._why_seconds,
            actor=actor,
            on_reply=on_reply,
        )
        try:
            async with Deadline(deadline):
                reply = await self._evaluate_with_retries(script, evaluate, tries, sent)
        except (SlotMovedError, WritesSilent):
            raise
        except MALFORMED_REPLY_ERRORS as error:
            malformed = RedisError(MALFORMED_REPLY)
            malformed.__cause__ = error  # from which described() has the server
            raise self._failure(malformed) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failure(error) from error
        if self._outages.redis.failing and not script.read_only:
            self._outages.redis.succeeded()
        return reply

    def send(
        self,
        script: Script,
        keys: list[str],
        *arguments: Argument,
        deadline: float,
        on_reply: OnReply,
        fall_back: Callable[[Sent], object],
    ) -> FallbackFuture | None:
        """The first try of run() for a script that is safe to repeat, without a task. When it
        fails, or has no reply by the deadline, ``fall_back`` is called with what run() takes as
        ``sent``, to go on. Returns None where run() would have to find the node or to open a
        connection first: nothing was sent then."""
        connection = self.main.connection(keys)
        if connection is None:
            return None
        tag, words = scripts.command(script, keys, arguments, self._why_seconds, "")
        begun = time.monotonic()

        def on_tagged_reply(reply: Any) -> Any:
            own = untagged(tag, reply)
            if not future.done():  # else run() has given it up
                self._metrics.redis_replied(time.monotonic() - begun)
                if self._outages.redis.failing:
                    self._outages.redis.succeeded()
            return on_reply(own)

        future = FallbackFuture(deadline, lambda reply: fall_back(Sent(connection, reply)))
        connection.send(words, on_tagged_reply, safe_to_repeat=True, future=future)
        return future

    async def _evaluate_with_retries(
        self,
        script: Script,
        evaluate: Callable[..., Awaitable[Any]],
        tries: int,
        sent: Sent | None,
    ) -> Any:
        """A call whose keys are being moved has not been carried out, and does not count as a
        try."""
        while True:
            begun = time.monotonic()
            first, sent = sent, None
            try:
                reply = await evaluate(sent=first)
                if first is None or first.reply.exception():  # else send() has counted it
                    self._metrics.redis_replied(time.monotonic() - begun)
                return reply
            except SlotMovedError:
                if script.has_read_only_twin:
                    raise
                await asyncio.sleep(MOVING_SECONDS)
            except SilentError:
                if script.has_read_only_twin:
                    raise WritesSilent from None
                tries -= 1
                if tries < 1:
                    raise
                # The connections to other nodes may be lost as well: the second try opens new ones.
                self.degraded_reads.reset()
            except (ReadOnlyError, RedisConnectionError) as error:
                tries -= 1
                if isinstance(error, ReadOnlyError):
                    # Nothing was written. The server was demoted: find the new master.
                    self.reset()
                if tries < 1:
                    raise

    def _failure(self, error: RedisError | OSError | TimeoutError) -> StoreUnavailable:
        """What the caller is told of the error, which is counted and logged."""
        reason = str(error) or type(error).__name__
        if isinstance(error, TimeoutError) and not str(error):  # that of the deadline
            reason = f"no answer in {self.timeout_seconds:g} s"
        line = described(error, reason)
        if isinstance(error, MismatchedReplyError):
            logger.error("a connection to Redis is out of step: %s; all are closed", line)
            self._metrics.add(REDIS_ERRORS, "refused")
            self.reset()
            return StoreUnavailable(reason)
        if self._closed:  # by the program: that is no outage
            return StoreUnavailable(reason)
        self._metrics.add(REDIS_ERRORS, _metric_reason(error))
        unconfirmed = isinstance(error, UnconfirmedError)
        outage = self._outages.confirmation if unconfirmed else self._outages.redis
        outage.failed(line)
        refused = reason.startswith(("MISCONF", "NOREPLICAS"))
        return WritesRefused(reason) if refused else StoreUnavailable(reason)

    async def probe(self, key: str, seconds: float) -> None:
        """Raise StoreUnavailable unless a master takes writes and has every script of the service,
        within the time. Missing scripts are loaded, and nothing is written.

        One master of a Cluster is enough: with it this node serves a part of the users.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        with unavailable():
            async with Deadline(deadline):
                masters = await self.main.masters()
        probes = (self._probe_master(execute, key, deadline) for execute in masters.values())
        failures = await asyncio.gather(*probes, return_exceptions=True)
        if None not in failures:
            raise next((f for f in failures if f), StoreUnavailable("no master is known"))

    async def _probe_master(self, execute: Execute, key: str, deadline: float) -> None:
        with unavailable():
            async with Deadline(deadline):
                for start in range(0, len(scripts.SERVICE_SCRIPTS), EXISTS_MAX):
                    group = scripts.SERVICE_SCRIPTS[start : start + EXISTS_MAX]
                    loaded = await execute("SCRIPT", "EXISTS", *(script.sha for script in group))
                    for script, is_loaded in zip(group, loaded, strict=True):
                        if not is_loaded:
                            await execute("SCRIPT", "LOAD", script.source)
                try:
                    await scripts.evaluate(execute, scripts.PROBE, [], key)
                except ReadOnlyError:
                    self.reset()  # demoted: the next connection finds the master
                    raise

    def reset(self) -> None:
        """Drop the connections."""
        for commands in self._all_commands:
            commands.reset()

    async def aclose(self) -> None:
        """Close the connections for good."""
        self._closed = True
        for commands in self._all_commands:
            await commands.aclose()


def _metric_reason(error: RedisError | OSError | TimeoutError) -> str:
    """The label of sesiones_redis_errors_total: each names another place to look for the cause."""
    if isinstance(error, (TimeoutError, RedisTimeoutError)):
        return "timeout"
    if isinstance(error, UnconfirmedError):
        return "unconfirmed"
    return "connection" if isinstance(error, (RedisConnectionError, OSError)) else "refused"


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """Raise what Redis and the connection to it raise, and a malformed reply, as
    StoreUnavailable."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(str(error) or type(error).__name__) from error
    except MALFORMED_REPLY_ERRORS as error:
        raise StoreUnavailable(MALFORMED_REPLY) from error
