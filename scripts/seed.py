"""Fill a store with sessions for load tests, and write their tokens to a file.

    python -m scripts.seed --users 100000 --sessions 10    a million sessions
    python -m scripts.seed --clean                         end them, and remove the file

The SESIONES_* variables say which Redis, and how long a session lives. Each session is made by
the store itself, so it is a session like any other.

The tokens are drawn first, to FILE.partial; then the session of each is created; then the file
gets its name. So every session that this makes is in a file before it is in Redis, and FILE is
there only once all its sessions are. Creating a session that is there changes nothing: after
Ctrl-C, or an outage, the same command passes over those sessions and makes the missing ones. On
a finished FILE it brings back those that have expired or were ended since.

A file has a line a session: its user, a space, its token. The users are 9000000000000000 and up,
which no application has; --clean ends every session of theirs, the ones that a load test added
too.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import fcntl
import itertools
import os
import re
import stat
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import uvloop

from sesiones import tokens
from sesiones.sesion import StoreUnavailable
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
    """The sessions of a file. Raises SeedError."""
    try:
        with path.open(encoding="ascii") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise SeedError(f"{path} is open to others, and tokens are passwords: chmod 600")
            return [_parse(line, f"{path}:{number}") for number, line in enumerate(file, 1)]
    except UnicodeDecodeError:
        raise SeedError(f"{path} is damaged: it is not ASCII") from None


def _parse(line: str, place: str) -> Session:
    user, _, token = line.removesuffix("\n").partition(" ")
    if (
        re.fullmatch(r"9[0-9]{15}", user)
        and tokens.is_well_formed(token)
        and tokens.bucket(token) == tokens.user_bucket(int(user))
        and line.endswith("\n")
    ):
        return int(user), token
    raise SeedError(f"{place} is damaged: a user from {FIRST_USER} on, a space, its token")


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _draw(path: Path, users: int, sessions: int) -> list[Session]:
    """New tokens, in a new file."""
    drawn = [
        (user, tokens.make(user))
        for user in range(FIRST_USER, FIRST_USER + users)
        for _ in range(sessions)
    ]
    # It gets its name when it is whole, and takes nobody else's.
    with tempfile.NamedTemporaryFile("w", encoding="ascii", dir=path.parent) as file:
        file.writelines(f"{user} {token}\n" for user, token in drawn)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.name, path)
    return drawn


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Two at once would draw, or end, the same file's sessions."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SeedError(f"another seed is at work in {folder}") from None
        yield
    finally:
        os.close(descriptor)


def _existing(path: Path) -> Path | None:
    return next((file for file in (path, partial(path)) if file.exists()), None)


def seed(settings: Settings, path: Path, users: int, sessions: int) -> list[Session]:
    """Make the sessions of the file, or of a new one. Raises SeedError, StoreUnavailable."""
    if sessions > settings.max_per_user:
        raise SeedError(
            f"a user may have {settings.max_per_user} sessions (SESIONES_MAX_PER_USER), "
            f"not {sessions}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.parent):
        if file := _existing(path):
            made = read_tokens(file)
            present = len({user for user, _ in made})
            if (present, len(made)) != (users, users * sessions):
                raise SeedError(
                    f"{file} has {len(made):,} sessions of {present:,} users, "
                    f"not {users * sessions:,} of {users:,}: --clean it first, or name another"
                )
        else:
            file = partial(path)
            made = _draw(file, users, sessions)

        async def create(store: SessionStore, session: Session) -> None:
            user, token = session
            await store._create(user, DEVICE, token)

        uvloop.run(_each(settings, create, made, Progress("seeding", len(made))))
        file.replace(path)
        return made


def clean(settings: Settings, path: Path) -> int:
    """End every session of the file's users, and remove it: how many ended.

    Raises SeedError, StoreUnavailable.
    """
    count = 0
    with _lock(path.parent):
        file = _existing(path)
        if file is None:
            raise SeedError(f"{path} does not exist")
        by_user = itertools.groupby(read_tokens(file), key=lambda session: session[0])
        users = [[token for _, token in sessions] for _, sessions in by_user]

        async def end(store: SessionStore, user_tokens: list[str]) -> None:
            nonlocal count
            for token in user_tokens:
                # Any one that is live and active speaks for its user.
                if isinstance(ended := await store.end_all(token, token), int):
                    count += ended
                    break

        uvloop.run(_each(settings, end, users, Progress("cleaning", len(users))))
        file.unlink()
    return count


async def _each(
    settings: Settings,
    call: Callable[[SessionStore, Item], Awaitable[None]],
    items: Iterable[Item],
    progress: Progress,
) -> None:
    """CALLS at once; the first that fails ends the others."""
    # Nobody waits for an answer here: Redis may take its time.
    store = open_store(dataclasses.replace(settings, redis_timeout=max(settings.redis_timeout, 10)))
    shared = iter(items)

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
        await store.aclose()


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


def positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
