"""Lua scripts: what each may do, and one call of one, with a proof that the reply is its own.

RESP2 replies carry no number, so a bug in a connection could hand one caller the reply of another:
another user's session. Therefore each call sends a tag of its own as its last argument, and the
script returns it beside its reply. A reply with another tag is never used.
"""

import hashlib
import itertools
import re
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from sesiones.redis_client import Argument, Execute, OnReply
from sesiones.redis_client.connection import Sent

_tags = itertools.count(1)


class MismatchedReplyError(RedisError):
    """The reply belongs to another call."""

    def __str__(self) -> str:
        return "a reply of another call"


def _read(name: str) -> str:
    return (files("sesiones.store") / "lua" / f"{name}.lua").read_text("utf-8")


def _code(*names: str) -> str:
    """Those files without first lines and comments: read-only scripts are sent with each call."""
    return re.sub(r"(?m)^ *(--.*|#!.*)?\n", "", "".join(map(_read, names)))


OPERATE = "local reply = operation()\n"
"""Runs a script's body."""
OPERATE_AND_PUBLISH = f"""\
local done, reply = pcall(operation)
if next(traces) then
  pcall(function()
{_code("traces")}  end)
end
if invalidated[1] then
  local channel = string.match(invalidated.base, '^[^{{]*') .. 'invalidated'
  -- A server that does not allow it must fail no operation, because only a cache needs it. It is
  -- asked first: each refused command is an entry in ACL LOG, where it looks like an intruder.
  local known, allowed = pcall(redis.acl_check_cmd, 'PUBLISH', channel, '')
  if known and allowed then
    redis.pcall('PUBLISH', channel, table.concat(invalidated, ' '))
  end
end
if not done then
  error(reply, 0)
end
"""
"""Runs a script's body. Its last writes are the traces of sessions that are gone, and a message to
the caches of every node about what it has ended or changed. They come behind an error, too, because
Redis takes nothing back that a script has written."""
TAKE_ARGUMENTS = """\
local last = #ARGV
local keep, actor, tag = tonumber(ARGV[last - 2]), ARGV[last - 1], ARGV[last]
ARGV[last], ARGV[last - 1], ARGV[last - 2] = nil, nil, nil
local invalidated, traces = {}, {}
"""
TAKE_TAG = """\
local tag, actor, keep = table.remove(ARGV), '', 0
"""


class Script:
    """One file of lua/: its first line, which has its flags, then what it shares with others, then
    its body in a function whose return value goes out beside the tag. An error goes out alone,
    because it says nothing about a session."""

    def __init__(self, name: str) -> None:
        shebang = _read(name).partition("\n")[0]
        flags = shebang.partition("flags=")[2].split(",")
        self.cross_slot = "allow-cross-slot-keys" in flags
        """A batch has keys of many slots, so it declares none to Redis. A batch of one key declares
        it, so that a wrong node answers MOVED."""
        self.read_only = "no-writes" in flags
        """While writes are paused, Redis holds back a script that it does not know by its digest,
        because it might write. So a read-only script is sent with its source."""
        self.safe_to_repeat = self.cross_slot
        """Batches read or slide sessions, so one that is carried out late or twice does no harm. A
        create that is carried out late would bring back a session that has been logged out."""
        self.has_read_only_twin = self.cross_slot and not self.read_only
        """A batch that writes (check.lua) has a read-only twin (peek.lua). Its caller runs the twin
        when Redis takes no writes, and when the keys are not all on one node."""
        if self.read_only:
            self.shared = _code("session")
        elif self.has_read_only_twin:
            slide = f"local function make_slide()\n{_code('writing', 'slide')}end\n"
            self.shared = _code("session") + slide
        else:
            self.shared = _code("session", "writing", "user")
        self.source = (
            f"{shebang}\n{TAKE_TAG if self.read_only else TAKE_ARGUMENTS}{self.shared}"
            f"local function operation()\n{_code(name)}end\n"
            f"{OPERATE if self.read_only else OPERATE_AND_PUBLISH}"
            "if type(reply) == 'table' and reply.err then\n  return reply\nend\n"
            "return {tag, reply}\n"
        )
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


CHECK, PEEK = Script("check"), Script("peek")
CREATE, UPDATE = Script("create"), Script("update")
END, END_ALL, END_USER = Script("end"), Script("end_all"), Script("end_user")
REVOKE, END_AGAIN = Script("revoke"), Script("end_again")
LIST, PROBE = Script("list"), Script("probe")
AUDIT, SURVEY, WHY = Script("audit"), Script("survey"), Script("why")
END_BEGUN = Script("end_begun")
SERVICE_SCRIPTS = (
    *(CHECK, PEEK, CREATE, UPDATE, END, END_ALL, END_USER, REVOKE, END_AGAIN, LIST, PROBE),
)
"""The scripts that the service runs; the others are for operators."""


def command(
    script: Script, keys: list[str], arguments: tuple[Argument, ...], why_seconds: int, actor: str
) -> tuple[bytes, tuple[Argument, ...]]:
    """A tag, and the command that runs the script with it. No two commands of this process have the
    same tag, on any connection. ``why_seconds`` and ``actor`` are `keep` and `actor` of
    lua/session.lua."""
    tag = b"%d" % next(_tags)
    named = ("EVAL", script.source) if script.read_only else ("EVALSHA", script.sha)
    declared = keys if len(keys) == 1 or not script.cross_slot else ()
    last = (tag,) if script.read_only else (why_seconds, actor, tag)
    return tag, (*named, len(declared), *declared, *arguments, *last)


async def evaluate(
    execute: Execute,
    script: Script,
    keys: list[str],
    *arguments: Argument,
    why_seconds: int = 0,
    actor: str = "",
    on_reply: OnReply | None = None,
    sent: Sent | None = None,
) -> Any:
    """Run the script once. Return its reply, or what ``on_reply`` makes of it; see
    Commands.execute(), also for ``sent``. Raises what ``execute`` and ``on_reply`` raise,
    MismatchedReplyError and MALFORMED_REPLY_ERRORS."""
    tag, words = command(script, keys, arguments, why_seconds, actor)
    options: dict[str, Any] = {"keys": keys, "safe_to_repeat": script.safe_to_repeat}
    if on_reply is not None:
        options["on_reply"] = lambda reply: on_reply(untagged(tag, reply))
    first = options if sent is None else {"sent": sent, **options}
    try:
        reply = await execute(*words, **first)
    except NoScriptError:
        reply = await execute("EVAL", script.source, *words[2:], **options)
    return untagged(tag, reply) if on_reply is None else reply


def untagged(tag: bytes, tagged: Any) -> Any:
    """The script's reply, without the tag that proves whose it is. An array of Lua ends before its
    first nil, so the reply of a script that returns nil is the tag alone."""
    if tagged[0] != tag:
        raise MismatchedReplyError
    return tagged[1] if len(tagged) > 1 else None
