"""Lua scripts: run one, with a deadline, a second try and a proof of whose the reply is.

RESP2 replies carry no number, so a bug in a connection could hand one caller the reply of another:
another user's session. Therefore each call sends a tag of its own as its last argument, and the
script returns it beside its reply. A reply with another tag is never used.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sesiones.metrics import REDIS_ERRORS, Metrics
from sesiones.redis_client import Argument, Commands, Execute, OnReply
from sesiones.redis_client.cluster import SlotMovedError
from sesiones.redis_client.connection import SilentError
from sesiones.redis_client.single import UnconfirmedError
from sesiones.sesion import StoreUnavailable
from sesiones.store.errors import WritesRefused, WritesSilent
from sesiones.tasks import MALFORMED_REPLY_ERRORS, Deadline

logger = logging.getLogger("sesiones.store")

MOVING_SECONDS = 0.01
"""Between two tries of a call whose keys are being moved from one node of a Cluster to another."""

_tags = itertools.count(1)
"""One series for the whole process: no two calls on any connection have the same tag."""


class MismatchedReplyError(RedisError):
    """The reply is of another call."""

    def __str__(self) -> str:
        return "a reply of another call"


class Script:
    """One file of lua/: its first line, which has its flags, then session.lua, then its body in a
    function whose return value goes out beside the tag. An error goes out alone: it tells nothing
    of a session."""

    def __init__(self, name: str) -> None:
        folder = files("sesiones.store") / "lua"
        shebang, _, body = (folder / f"{name}.lua").read_text("utf-8").partition("\n")
        shared = (folder / "session.lua").read_text("utf-8")
        self.source = (
            f"{shebang}\nlocal tag = table.remove(ARGV)\n{shared}\n"
            f"local function operation()\n{body}\nend\n"
            "local reply = operation()\n"
            "if type(reply) == 'table' and reply.err then\n  return reply\nend\n"
            "return {tag, reply}\n"
        )
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.cross_slot = "allow-cross-slot-keys" in shebang
        """A batch takes keys of many slots, so the call declares none; a lone key redirects it."""
        self.read_only = "no-writes" in shebang
        """While writes are paused, Redis holds back a script that it does not know by its digest:
        it might write. So one that does not is sent with its source."""


CHECK, PEEK = Script("check"), Script("peek")
CREATE, UPDATE = Script("create"), Script("update")
END, END_ALL, END_AGAIN = Script("end"), Script("end_all"), Script("end_again")
PROBE = Script("probe")
LIST, END_USER, AUDIT = Script("list"), Script("end_user"), Script("audit")
SERVICE_SCRIPTS = (CHECK, PEEK, CREATE, UPDATE, END, END_ALL, END_AGAIN, PROBE)
"""What the service runs; the rest is for operators."""


async def call(
    execute: Execute, script: Script, keys: list[str], *arguments: Argument, **how: Any
) -> Any:
    """The script's reply. ``how``: further arguments of ``execute``. Raises what it raises,
    MismatchedReplyError and MALFORMED_REPLY_ERRORS."""
    tag = b"%d" % next(_tags)
    declared = keys if len(keys) == 1 or not script.cross_slot else ()
    rest = (len(declared), *declared, *arguments, tag)
    if on_reply := how.get("on_reply"):
        how["on_reply"] = partial(_if_tagged, tag, on_reply)
    try:
        named = ("EVAL", script.source) if script.read_only else ("EVALSHA", script.sha)
        tagged = await execute(*named, *rest, keys=keys, **how)
    except NoScriptError:
        tagged = await execute("EVAL", script.source, *rest, keys=keys, **how)
    if tagged[0] != tag:
        raise MismatchedReplyError
    return tagged[1] if len(tagged) > 1 else None


def _if_tagged(tag: bytes, on_reply: OnReply, tagged: Any) -> None:
    if isinstance(tagged, list) and len(tagged) > 1 and tagged[0] == tag:
        on_reply(tagged[1])


class Outage:
    """Logs the first failure of an outage, not each of its thousands, and its end: when nothing has
    failed for a second."""

    def __init__(self, failing: str, over: str) -> None:
        self._failing, self._over = failing, over
        self.failed_at: float | None = None

    def failed(self, reason: str) -> None:
        if self.failed_at is None:
            logger.error("%s: %s", self._failing, reason)
        self.failed_at = time.monotonic()

    def succeeded(self) -> None:
        if self.failed_at is not None and time.monotonic() - self.failed_at > 1:
            logger.info(self._over)
            self.failed_at = None


class Outages:
    """Those of a store, whatever event loop they are seen in."""

    def __init__(self) -> None:
        self.redis = Outage("Redis is unavailable", "Redis is available again")
        self.confirmation = Outage("writes are not confirmed", "writes are confirmed again")


class ScriptRunner:
    """Runs scripts on one event loop's connections; each run raises StoreUnavailable when Redis
    does not answer in time or refuses."""

    def __init__(
        self,
        commands: Commands,
        writes: Commands,
        reads: Commands,
        *,
        wait_replicas: int,
        timeout_seconds: float,
        outages: Outages,
        metrics: Metrics,
    ) -> None:
        """``writes``: for what waits for replicas; a check must not wait behind it. ``reads``: for
        checks while writes are not to be had: a write that Redis holds back (CLIENT PAUSE) holds up
        all that is sent behind it on its connection."""
        self.commands = commands
        self.writes = writes
        self.reads = reads
        self._every_commands = {commands, writes, reads}
        self._wait_replicas = wait_replicas
        self._timeout_seconds = timeout_seconds
        self._outages = outages
        self._metrics = metrics
        self._closed = False

    async def write(
        self,
        script: Script,
        keys: list[str],
        *arguments: Argument,
        tries: int = 2,
        on_reply: OnReply | None = None,
    ) -> Any:
        """The script's reply, once enough replicas have what it wrote. ``on_reply`` is called with
        it whether it is confirmed or not, and even if the caller was cancelled."""
        execute = partial(self.writes.execute, replicas=self._wait_replicas)
        reply = await self.run(
            script, keys, *arguments, execute=execute, tries=tries, on_reply=on_reply
        )
        self._outages.confirmation.succeeded()
        return reply

    async def run(
        self,
        script: Script,
        keys: list[str],
        *arguments: Argument,
        execute: Execute | None = None,
        tries: int = 2,
        deadline: float | None = None,
        on_reply: OnReply | None = None,
    ) -> Any:
        """The script's reply, by the deadline in the loop's time, or in ``timeout_seconds``. A
        second try follows at once, for a connection that Redis closed.

        A check raises SlotMovedError, and WritesSilent after half of the time on a connection that
        is silent: it has a read-only twin, and may be carried out late. The others go on until the
        keys are on one node again, and keep their connection: a create that is carried out late,
        after its second try and a logout, would bring the session back.
        """
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + self._timeout_seconds
        how: dict[str, Any] = {"on_reply": on_reply} if on_reply else {}
        if script in (CHECK, PEEK):
            how["repeatable"] = True
        try:
            async with Deadline(deadline):
                while True:
                    begun = time.monotonic()
                    try:
                        reply = await call(
                            execute or self.commands.execute, script, keys, *arguments, **how
                        )
                        self._metrics.redis_replied(time.monotonic() - begun)
                        break
                    except SlotMovedError:
                        # Nothing was written, so that this was no try.
                        if script is CHECK:
                            raise
                        await asyncio.sleep(MOVING_SECONDS)
                    except SilentError:
                        if script is CHECK:
                            raise WritesSilent from None
                        tries -= 1
                        if tries < 1:
                            raise
                        if script is PEEK:
                            self.reads.reset()  # to other nodes, too: they may be as dead
                    except (ReadOnlyError, RedisConnectionError) as error:
                        tries -= 1
                        if isinstance(error, ReadOnlyError):
                            # Demoted: nothing was written. The master is elsewhere.
                            self.reset()
                        if tries < 1:
                            raise
        except (SlotMovedError, WritesSilent):
            raise
        except MismatchedReplyError as error:
            logger.error("a connection to Redis is out of step: %s; it is closed", error)
            self._metrics.add(REDIS_ERRORS, "refused")
            self.reset()
            raise StoreUnavailable(str(error)) from error
        except MALFORMED_REPLY_ERRORS as error:
            raise StoreUnavailable(NOT_OURS) from error
        except (RedisError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            if self._closed:  # by the program: that is no outage
                raise StoreUnavailable(reason) from error
            self._metrics.add(REDIS_ERRORS, _kind(error))
            outages = self._outages
            outage = outages.confirmation if isinstance(error, UnconfirmedError) else outages.redis
            outage.failed(reason)
            refused = reason.startswith(("MISCONF", "NOREPLICAS"))
            raise (WritesRefused if refused else StoreUnavailable)(reason) from error
        if self._outages.redis.failed_at is not None and script is not PEEK:
            self._outages.redis.succeeded()
        return reply

    def reset(self) -> None:
        """Drop the connections."""
        for commands in self._every_commands:
            commands.reset()

    async def aclose(self) -> None:
        """Close the connections for good."""
        self._closed = True
        for commands in self._every_commands:
            await commands.aclose()


def _kind(error: Exception) -> str:
    """Of the metric: what went wrong, as far as an operator would go elsewhere for it."""
    if isinstance(error, (TimeoutError, RedisTimeoutError)) or str(error) == "no reply in time":
        return "timeout"
    if isinstance(error, UnconfirmedError):
        return "unconfirmed"
    return "connection" if isinstance(error, (RedisConnectionError, OSError)) else "refused"


NOT_OURS = "a reply that no script of ours gives"


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """What Redis and the way to it raise, and replies that fit no script of ours, as the one error
    that callers know."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(str(error) or type(error).__name__) from error
    except MALFORMED_REPLY_ERRORS as error:
        raise StoreUnavailable(NOT_OURS) from error
