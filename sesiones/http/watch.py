"""What the log says of the service and its Redis without being asked by a request.

At start: the version, the settings and what Redis answers, or why it does not. After that, each
minute: whether Redis may evict sessions, or has. An evicted session is a silent logout, or, when
the index of a user is evicted, a session that no logoutAll ends.
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
from sesiones.redis_client import Commands, Execute, connect
from sesiones.settings import Settings, public_url

logger = logging.getLogger("sesiones.watch")

ANSWER_SECONDS = 1.0
"""What Redis may take to answer."""
RETRY_SECONDS = 5.0
"""Until it is asked again, when it has not."""
LOOK_SECONDS = 60.0
REPEAT_SECONDS = 3600.0
"""When a warning that has not changed is repeated."""
CLOSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Master:
    """A server that takes writes, as far as it may be asked."""

    role: str
    info: dict[str, str]

    def __str__(self) -> str:
        info = self.info
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']}, {self.role}"
        return f"Redis {info.get('redis_version', 'of unknown version')}, {self.role}"

    def eviction(self) -> str:
        """What there is to warn about."""
        policy = self.info.get("maxmemory_policy", "noeviction")
        evicted = int(self.info.get("evicted_keys", 0))
        said = []
        if policy != "noeviction":
            said.append(f"maxmemory-policy is {policy}: set it to noeviction")
        if evicted:
            said.append(f"{evicted:,} keys have been evicted since it started")
        return ", ".join(said)


class Watch:
    """Watches while its context lasts, from a thread and over a connection of its own: once for a
    service, whatever its workers do."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._said: dict[str, tuple[str, float]] = {}
        self._refused: set[str] = set()
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
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(task.cancel)
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            # Unlike asyncio's own, this loop looks names up in threads that nothing waits for.
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
        commands = connect(
            self._settings.redis_url, max(ANSWER_SECONDS, self._settings.redis_timeout)
        )
        try:
            await self._start(commands)
            while True:
                with suppress(Exception):  # of an outage the store tells
                    self._warn(await self._look(commands))
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await commands.aclose()

    async def _start(self, commands: Commands) -> None:
        begun = f"sesiones {sesiones.__version__}"
        where = public_url(self._settings.redis_url)
        changed = dict(self._settings.changed())
        changed.pop("SESIONES_REDIS_URL", None)  # the line has it anyway
        texts = [f"{name}={value}" for name, value in changed.items()]
        rest = f"settings: {' '.join(texts) or 'the defaults'}"
        while True:
            try:
                masters = await self._look(commands)
            except Exception as error:
                if begun:
                    reason = str(error).rstrip(".") or "no answer in time"
                    logger.warning("%s; %s does not answer: %s; %s", begun, where, reason, rest)
            else:
                are = [f"{name} {master}" for name, master in masters.items()]
                text = ", ".join(are) if len(are) != 1 else str(*masters.values())
                well = all(master.role in ("master", "role unknown") for master in masters.values())
                level = logging.INFO if well else logging.WARNING
                if begun:
                    logger.log(level, "%s; %s answers: %s; %s", begun, where, text, rest)
                else:
                    logger.log(level, "%s answers: %s", where, text)
                return
            begun = ""
            await asyncio.sleep(RETRY_SECONDS)

    async def _look(self, commands: Commands) -> dict[str, _Master]:
        """Every master. Raises what commands raise, and what an answer that is not Redis's does."""
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            masters = await commands.masters()
            found = await asyncio.gather(*map(self._look_at, masters.values()))
        return dict(zip(masters, found, strict=True))

    async def _look_at(self, execute: Execute) -> _Master:
        role: list[bytes] = await self._ask(execute, "ROLE") or []
        text: bytes = await self._ask(execute, "INFO") or b""
        lines = text.decode(errors="replace").splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        name = role[0].decode() if role else info.get("role", "role unknown")
        return _Master(name.replace("slave", "replica"), info)

    async def _ask(self, execute: Execute, command: str) -> Any:
        """None, for good, when the Redis user may not: each refusal would be in Redis's ACL LOG."""
        if command in self._refused:
            return None
        try:
            return await execute(command)
        except NoPermissionError:
            self._refused.add(command)
            return None

    def _warn(self, masters: dict[str, _Master]) -> None:
        for name, master in masters.items():
            where = f"{public_url(self._settings.redis_url)} {name if len(masters) > 1 else ''}"
            text, now = master.eviction(), time.monotonic()
            said, said_at = self._said.get(name, ("", 0.0))
            if text and (text != said or now - said_at >= REPEAT_SECONDS):
                logger.warning(
                    "%s: %s; an evicted session is a silent logout", where.rstrip(), text
                )
                self._said[name] = text, now
            elif not text:
                self._said.pop(name, None)
