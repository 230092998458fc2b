"""What the recipes are about: sessions, logouts, and nodes that go on meanwhile."""

import asyncio
import random
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from sesiones.sesion import Sesion, StoreUnavailable
from sesiones.store import SessionStore
from tests.harness.redis_server import wait_until
from tests.harness.stores import open_store


def create(url: str, *users: int, device: str = "laptop", **options: Any) -> list[Sesion]:
    async def create() -> list[Sesion]:
        async with open_store(url, **options) as store:
            return [await store.create(user, device) for user in users]

    return asyncio.run(create())


def end(url: str, *made: Sesion, **options: Any) -> None:
    async def end() -> None:
        async with open_store(url, **options) as store:
            for sesion in made:
                assert await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1

    asyncio.run(end())


def live(url: str, made: Iterable[Sesion], **options: Any) -> list[bool]:
    async def find() -> list[bool]:
        async with open_store(url, **options) as store:
            return [await store.find(sesion.Token_Sesion) is not None for sesion in made]

    return asyncio.run(find())


class Node:
    """A node that logs users in and out, all the time, until it is stopped. What Redis did not
    acknowledge counts for nothing. Both it and another node, which has no tombstones of those
    logouts, check the sessions: a wrong answer fails."""

    def __init__(self, url: str, first_user: int = 0) -> None:
        self._url, self._user = url, first_user
        self.kept: list[Sesion] = []
        self.ended: list[Sesion] = []
        self.checks = 0
        self.failed_checks = 0
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:
            self._failure = error

    async def _work(self) -> None:
        async with (
            open_store(self._url, timeout_seconds=1) as store,
            open_store(self._url, timeout_seconds=1) as other,
        ):
            while not self._stopped.is_set():
                self._user += 1
                try:
                    sesion = await store.create(self._user, "laptop")
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
                else:
                    await self._use(store, sesion)
                await self._check(store)
                await self._check(other)

    async def _check(self, store: SessionStore) -> None:
        """The latest session that is kept and the latest one that has ended, and an earlier one of
        each."""
        self.checks += 1
        try:
            for made, lives in (self.kept, True), (self.ended, False):
                for sesion in (made[-1], random.choice(made)) if made else ():
                    assert (await store.find(sesion.Token_Sesion) is not None) == lives, sesion
        except StoreUnavailable:
            self.failed_checks += 1

    async def _use(self, store: SessionStore, sesion: Sesion) -> None:
        if self._user % 2:
            self.kept.append(sesion)
            return
        try:
            if await store.end(sesion.Token_Sesion, sesion.Token_Sesion) == 1:
                self.ended.append(sesion)
        except StoreUnavailable:
            pass

    def wait_for(self, count: int) -> None:
        """Until so many more sessions have been kept and ended."""
        wanted = len(self.kept) + count, len(self.ended) + count
        wait_until(
            lambda: (
                self._failure is not None
                or (len(self.kept) >= wanted[0] and len(self.ended) >= wanted[1])
            ),
            "logins and logouts",
        )
        assert self._failure is None, self._failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if error is None:
            assert self._failure is None, self._failure
