"""Lua scripts: what each may do, and one call of one, with a proof that the reply is its own.

RESP2 replies carry no number, so a bug in a connection could hand one caller the reply of another:
another user's session. Therefore each call sends a tag of its own as its last argument, and the
script returns it beside its reply. A reply with another tag is never used.
"""

import hashlib
import itertools
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from sesiones.redis_client import Argument, Execute, OnReply

_tags = itertools.count(1)
"""One series for the whole process: no two calls on any connection have the same tag."""


class MismatchedReplyError(RedisError):
    """The reply belongs to another call."""

    def __str__(self) -> str:
        return "a reply of another call"


PUBLISH = """\
if invalidated[1] then
  -- An ACL that does not allow it must fail no operation: it is needed only where there is a cache.
  redis.pcall('PUBLISH', string.match(invalidated.base, '^[^{]*') .. 'invalidated',
    table.concat(invalidated, ' '))
end
"""
"""The last write of a script tells the caches of every node what it has ended or changed."""


class Script:
    """One file of lua/: its first line, which has its flags, then session.lua, and user.lua unless
    it takes a batch, then its body in a function whose return value goes out beside the tag. An
    error goes out alone, because it says nothing about a session."""

    def __init__(self, name: str) -> None:
        folder = files("sesiones.store") / "lua"
        shebang, _, body = (folder / f"{name}.lua").read_text("utf-8").partition("\n")
        flags = shebang.partition("flags=")[2].split(",")
        self.cross_slot = "allow-cross-slot-keys" in flags
        """A batch has keys of many slots, so it declares none to Redis. A batch of one key declares
        it, so that a wrong node answers MOVED."""
        names = ("session",) if self.cross_slot else ("session", "user")
        shared = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
        self.source = (
            f"{shebang}\nlocal tag = table.remove(ARGV)\n{shared}\n"
            f"local function operation()\n{body}\nend\n"
            "local reply = operation()\n"
            "if type(reply) == 'table' and reply.err then\n  return reply\nend\n"
            f"{'' if 'no-writes' in flags else PUBLISH}"
            "return {tag, reply}\n"
        )
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.read_only = "no-writes" in flags
        """While writes are paused, Redis holds back a script that it does not know by its digest,
        because it might write. So a read-only script is sent with its source."""
        self.safe_to_repeat = self.cross_slot
        """Batches read or slide sessions, so one that is carried out late or twice does no harm. A
        create that is carried out late would bring back a session that has been logged out."""
        self.has_read_only_twin = self.cross_slot and not self.read_only
        """A batch that writes (check.lua) has a read-only twin (peek.lua). Its caller runs the twin
        when Redis takes no writes, and when the keys are not all on one node."""


CHECK, PEEK = Script("check"), Script("peek")
CREATE, UPDATE = Script("create"), Script("update")
END, END_ALL, END_USER = Script("end"), Script("end_all"), Script("end_user")
REVOKE, END_AGAIN = Script("revoke"), Script("end_again")
LIST, AUDIT, PROBE = Script("list"), Script("audit"), Script("probe")
SERVICE_SCRIPTS = (
    *(CHECK, PEEK, CREATE, UPDATE, END, END_ALL, END_USER, REVOKE, END_AGAIN, LIST, PROBE),
)
"""The scripts that the service runs; the others are for operators."""


async def evaluate(
    execute: Execute,
    script: Script,
    keys: list[str],
    *arguments: Argument,
    safe_to_repeat: bool = False,
    on_reply: OnReply | None = None,
) -> Any:
    """Run the script once. Return its reply, or what ``on_reply`` makes of it; see
    Commands.execute(). Raises what ``execute`` and ``on_reply`` raise, MismatchedReplyError and
    MALFORMED_REPLY_ERRORS."""
    tag = b"%d" % next(_tags)
    declared = keys if len(keys) == 1 or not script.cross_slot else ()
    rest = (len(declared), *declared, *arguments, tag)
    options: dict[str, Any] = {"keys": keys, "safe_to_repeat": safe_to_repeat}
    if on_reply is not None:
        options["on_reply"] = lambda tagged: on_reply(untagged(tag, tagged))
    try:
        named = ("EVAL", script.source) if script.read_only else ("EVALSHA", script.sha)
        reply = await execute(*named, *rest, **options)
    except NoScriptError:
        reply = await execute("EVAL", script.source, *rest, **options)
    return untagged(tag, reply) if on_reply is None else reply


def untagged(tag: bytes, tagged: Any) -> Any:
    """The script's reply, without the tag that proves whose it is. An array of Lua ends before its
    first nil, so the reply of a script that returns nil is the tag alone."""
    if tagged[0] != tag:
        raise MismatchedReplyError
    return tagged[1] if len(tagged) > 1 else None
