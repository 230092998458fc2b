"""What the log says about the service and its Redis, whether requests come or not.

At the start these are the version, the settings and what Redis answers, or why it does not answer.
After that, each minute, the log warns if Redis may evict sessions or has evicted some. An evicted
session is a silent logout; when the index of a user is evicted, logoutAll misses sessions.
"""

import asyncio
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import uvloop
from redis.exceptions import NoPermissionError

import sesiones
from sesiones import redis_url
from sesiones.redis_client import Commands, Execute, connect
from sesiones.redis_client.info import Info
from sesiones.settings import Settings

logger = logging.getLogger("sesiones.watch")

ANSWER_SECONDS = 1.0
"""How long Redis may take to answer."""
RETRY_SECONDS = 5.0
"""The time until Redis is asked again, if it did not answer."""
LOOK_SECONDS = 60.0
"""The time between two looks at Redis."""
REPEAT_SECONDS = 3600.0
"""The time until a warning that has not changed is repeated."""
CLOSE_SECONDS = 0.5
"""How long the end of the service waits for the thread."""


@dataclass(frozen=True, slots=True)
class _Master:
    """What a server that accepts writes answers. Commands that the ACL forbids leave gaps."""

    role: str
    info: Info

    def __str__(self) -> str:
        name, version = self.info.product
        return f"{name} {version or 'of unknown version'}, {self.role}"

    def eviction(self) -> str:
        """What to warn about; empty if there is nothing. A policy that is not known is no reason
        for a warning: it would come back each hour."""
        policy, evicted = self.info.eviction_policy, self.info.number("evicted_keys")
        warnings = []
        if policy not in ("noeviction", None):
            warnings.append(f"maxmemory-policy is {policy}: set it to noeviction")
        if evicted:
            warnings.append(f"{evicted:,} keys have been evicted since it started")
        return ", ".join(warnings)


class Watch:
    """Watches while its context lasts, in a thread and over a connection of its own. A service has
    one, however many workers it has."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = redis_url.parse(settings.redis_url).public
        self._warned: dict[str, tuple[str, float]] = {}  # text and time, by the name of the master
        self._forbidden: set[str] = set()  # commands that the ACL forbids
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except RuntimeError as error:
            logger.warning("Redis is not watched: %s", error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            loop, task = self._running
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            # The event loop of the service, so that an error reads as the same one of the store.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._watch())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # no file descriptor is free, for instance
            logger.warning("Redis is not watched: %s", error)

    async def _watch(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running = asyncio.get_running_loop(), task
        settings = self._settings
        patience_seconds = max(ANSWER_SECONDS, settings.redis_timeout)
        commands = connect(settings.redis_url, patience_seconds, settings.redis_ca_file)
        try:
            await self._log_start(commands)
            while True:
                with suppress(Exception):  # the store logs outages
                    self._warn(await self._look(commands))
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await commands.aclose()

    async def _log_start(self, commands: Commands) -> None:
        """One line as soon as Redis has answered or not, and one more once it does answer."""
        version = f"sesiones {sesiones.__version__}"
        changed = dict(self._settings.changed())
        changed.pop("SESIONES_REDIS_URL", None)  # the line has it anyway
        texts = " ".join(f"{name}={value}" for name, value in changed.items())
        settings = f"settings: {texts or 'the defaults'}"
        is_first = True
        while True:
            try:
                masters = await self._look(commands)
            except Exception as error:
                if is_first:
                    reason = str(error).rstrip(".") or f"no answer in {2 * ANSWER_SECONDS:g} s"
                    line = f"{self._url} does not answer: {reason}"
                    logger.warning("%s; %s; %s", version, line, settings)
            else:
                answers = [f"{name} {master}" for name, master in masters.items()]
                answer = ", ".join(answers) if len(masters) != 1 else str(*masters.values())
                well = all(master.role in ("master", "role unknown") for master in masters.values())
                level = logging.INFO if well else logging.WARNING
                line = f"{self._url} answers: {answer}"
                if is_first:
                    logger.log(level, "%s; %s; %s", version, line, settings)
                else:
                    logger.log(level, "%s", line)
                return
            is_first = False
            await asyncio.sleep(RETRY_SECONDS)

    async def _look(self, commands: Commands) -> dict[str, _Master]:
        """Every master by its name. Raises what commands raise, and any error from unpacking a
        reply of an unexpected shape."""
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            masters = await commands.masters()
            found = await asyncio.gather(*map(self._look_at, masters.values()))
        return dict(zip(masters, found, strict=True))

    async def _look_at(self, execute: Execute) -> _Master:
        role: list[bytes] = await self._ask(execute, "ROLE") or []
        info = Info.parse(await self._ask(execute, "INFO") or b"")
        name = role[0].decode() if role else info.get("role", "role unknown")
        return _Master(name.replace("slave", "replica"), info)

    async def _ask(self, execute: Execute, command: str) -> Any:
        """The reply, or None if the ACL forbids the command. Such a command is never sent again,
        because each refusal is an entry in Redis's ACL LOG."""
        if command in self._forbidden:
            return None
        try:
            return await execute(command)
        except NoPermissionError:
            self._forbidden.add(command)
            return None

    def _warn(self, masters: dict[str, _Master]) -> None:
        for name, master in masters.items():
            where = f"{self._url} {name if len(masters) > 1 else ''}"
            text, now = master.eviction(), time.monotonic()
            warned, warned_at = self._warned.get(name, ("", 0.0))
            if text and (text != warned or now - warned_at >= REPEAT_SECONDS):
                logger.warning(
                    "%s: %s; an evicted session is a silent logout", where.rstrip(), text
                )
                self._warned[name] = text, now
            elif not text:
                self._warned.pop(name, None)
