"""Fill a store with sessions for load tests, and write their tokens to a file.

    python -m scripts.seed --users 100000 --sessions 10    a million sessions
    python -m scripts.seed --clean                         end them, and remove the file

The SESIONES_* variables say which Redis, and how long a session lives. Each session is made by
the store itself, so it is a session like any other.

A file has a line a session: its user, a space, its token. It is written before the first session
is made, and to create a session that exists changes nothing: after Ctrl-C, after an outage and when
sessions have expired, the same command makes those that are missing. The users are
9000000000000000 and up, which no application has; --clean ends all their sessions, also the ones
that a load test has added.
"""

import argparse
import asyncio
import dataclasses
import os
import re
import stat
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import uvloop

from scripts.command_line import positive
from sesiones import tokens
from sesiones.sesion import LimitReached, StoreUnavailable
from sesiones.settings import Settings, SettingsError
from sesiones.store import SessionStore
from sesiones.store.from_settings import open_store
from tests.harness.progress import Progress

FIRST_USER = 9_000_000_000_000_000
FILE = Path("var/load/tokens")
DEVICE = "Mozilla/5.0 (X11; Linux x86_64) Firefox/1"
CALLS = 64
"""Calls to the store at once: enough to keep Redis busy."""

Session = tuple[int, str]
"""A user and a token."""

Item = TypeVar("Item")


class SeedError(Exception):
    """What cannot be done, in a line."""


def read_tokens(path: Path) -> list[Session]:
    """The sessions of a file. Raises SeedError, OSError."""
    with path.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise SeedError(f"{path} is open to others, and tokens are passwords: chmod 600")
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(file, 1)]


def _parse(line: bytes, place: str) -> Session:
    if match := re.fullmatch(rb"(9[0-9]{15}) ([!-~]+)\n", line):
        user, token = int(match[1]), match[2].decode()
        if tokens.is_well_formed(token) and tokens.bucket(token) == tokens.user_bucket(user):
            return user, token
    raise SeedError(f"{place} is damaged: a user from {FIRST_USER} on, a space, its token")


def _draw(path: Path, users: int, sessions: int) -> list[Session]:
    """New tokens in a new file, which gets its name when it is whole."""
    drawn = [
        (user, tokens.make(user))
        for user in range(FIRST_USER, FIRST_USER + users)
        for _ in range(sessions)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="ascii", dir=path.parent) as file:
        file.writelines(f"{user} {token}\n" for user, token in drawn)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.name, path)
    return drawn


def seed(settings: Settings, path: Path, users: int, sessions: int) -> list[Session]:
    """Make the sessions of the file, or of a new one. Raises SeedError, StoreUnavailable."""
    if sessions > settings.max_per_user:
        raise SeedError(
            f"a user may have {settings.max_per_user} sessions (SESIONES_MAX_PER_USER), "
            f"not {sessions}"
        )
    made = read_tokens(path) if path.exists() else _draw(path, users, sessions)
    present = len({user for user, _ in made})
    if (present, len(made)) != (users, users * sessions):
        raise SeedError(
            f"{path} has {len(made):,} sessions of {present:,} users, "
            f"not {users * sessions:,} of {users:,}: --clean it first, or name another"
        )

    async def create(store: SessionStore, session: Session) -> None:
        user, token = session
        try:
            await store._create(user, DEVICE, token)
        except LimitReached:
            raise SeedError(
                f"user {user} has {settings.max_per_user} other sessions, and SESIONES_AT_LIMIT is "
                "refuse: --clean their file first"
            ) from None

    uvloop.run(_each(settings, create, made, Progress("seeding", len(made))))
    return made


def clean(settings: Settings, path: Path) -> int:
    """End every session of the file's users, and remove it: how many ended.

    Raises SeedError, StoreUnavailable, OSError.
    """
    users = dict.fromkeys(user for user, _ in read_tokens(path))
    ended = 0

    async def end(store: SessionStore, user: int) -> None:
        nonlocal ended
        count = await store.end_user(user)
        ended += count

    uvloop.run(_each(settings, end, users, Progress("cleaning", len(users))))
    path.unlink()
    return ended


async def _each(
    settings: Settings,
    call: Callable[[SessionStore, Item], Awaitable[None]],
    items: Iterable[Item],
    progress: Progress,
) -> None:
    """CALLS at once; the first that fails ends the others."""
    # No caller waits for an answer here, so Redis may take its time.
    settings = dataclasses.replace(settings, redis_timeout=max(settings.redis_timeout, 10))
    shared = iter(items)
    async with open_store(settings) as store:

        async def work() -> None:
            for item in shared:
                await call(store, item)
                progress.step()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CALLS):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            progress.end()


def main() -> int:
    """The exit code: 0, 1 when it stopped midway, 2 for what it cannot do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=positive, default=10_000)
    parser.add_argument("--sessions", type=positive, default=10, help="of each user")
    parser.add_argument("--tokens", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--clean", action="store_true", help="end them, and remove the file")
    options = parser.parse_args()
    try:
        settings = Settings.read(os.environ, {})
        if options.clean:
            print(f"{clean(settings, options.tokens):,} sessions ended")
        else:
            made = seed(settings, options.tokens, options.users, options.sessions)
            print(f"{len(made):,} sessions of {options.users:,} users in {options.tokens}")
    except (SeedError, SettingsError, ValueError, OSError) as error:
        print(f"seed: {error}", file=sys.stderr)
        return 2
    except (StoreUnavailable, KeyboardInterrupt) as error:
        reason = f"Redis is unavailable: {error}" if str(error) else "interrupted"
        print(f"seed: {reason}; the same command goes on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
