"""A process that forks, as servers do that load the application before they fork their workers."""

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from sesiones.store.tombstones import Tombstones


def test_forked_process_has_no_connections_of_its_parent() -> None:
    """Two processes on one connection would read each other's replies, and the tombstones of one
    would wait for the answers to the other."""
    # In a process of its own, because this one has threads.
    program = """
import asyncio, os, time
from sesiones import SessionStore

store = SessionStore.from_url("redis://127.0.0.1:1")

async def opened():
    return store._loops.get()

loop = asyncio.new_event_loop()
parents = loop.run_until_complete(opened())
pid = os.fork()
if not pid:
    assert store._loops.existing() == []
    assert loop.run_until_complete(opened()) is not parents
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0
assert store._loops.existing() == [parents] == [loop.run_until_complete(opened())]
loop.close()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_process_that_was_forked_invalidates_answers_of_its_sibling() -> None:
    """A table that both have from before the fork: the values that they write must differ."""
    # In a process of its own, because this one has threads.
    program = """
import os
from sesiones.store.near_cache import InvalidationTable
table = InvalidationTable()
for _ in range(3):
    pid = os.fork()
    if not pid:
        table.invalidate([b"digest"])
        os._exit(0)
    os.waitpid(pid, 0)
    print(table.stamps[table.index(b"digest")])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert len({*ran.stdout.split()}) == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_process_that_is_forked_during_an_ending_can_end_sessions() -> None:
    """A lock that is held during a fork stays locked in the new process."""
    tombstones, adding = Tombstones(lambda _: time.monotonic()), threading.Event()

    def ending() -> Iterator[str]:
        adding.set()
        time.sleep(0.2)
        yield "sesiones:{aa}:h:1"

    thread = threading.Thread(target=tombstones.add, args=(ending(),))
    thread.start()
    assert adding.wait(10)
    process = multiprocessing.get_context("fork").Process(
        target=tombstones.add, args=(["sesiones:{aa}:h:2"],)
    )
    process.start()
    thread.join(10)
    process.join(10)
    process.kill()
    assert process.exitcode == 0
