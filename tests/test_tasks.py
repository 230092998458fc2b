"""The helpers for asyncio."""

import asyncio
import os

import pytest

from sesiones.tasks import PerLoop, SingleFlight


@pytest.mark.anyio
async def test_run_that_is_asked_for_as_one_ends_is_done() -> None:
    """Its last look at what there is to do has been."""
    runs: list[int] = []

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            # Comes after its end, and before any caller is told of that.
            asyncio.get_running_loop().call_soon(flight.start)

    flight = SingleFlight(work)
    flight.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (len(runs), flight.idle) == (2, True)
    await flight.aclose()


def test_values_are_closed_when_their_loop_ends_after_its_tasks() -> None:
    closed: list[object] = []

    async def close(value: object) -> None:
        await asyncio.sleep(0)
        closed.append(value)

    values: PerLoop[object] = PerLoop(object, close)

    async def main() -> None:
        first = values.get()
        assert values.get() is first

        async def last_use() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                assert values.get() is first
                assert closed == []

        task = asyncio.create_task(last_use())
        await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(main())
    asyncio.run(main())
    assert len(set(closed)) == 2
    assert values.existing() == []


def test_values_of_the_loops_of_another_process_do_not_exist() -> None:
    """They stay as they were at the fork: those of a store would keep its tombstones for good."""
    told, tell = os.pipe()

    async def main() -> None:
        values: PerLoop[object] = PerLoop(object, close)
        value = values.get()
        child = os.fork()
        if child == 0:
            os.write(tell, b"%d" % len(values.existing()))
            os._exit(0)
        os.waitpid(child, 0)  # noqa: ASYNC222
        assert values.existing() == [value]

    async def close(_: object) -> None:
        pass

    asyncio.run(main())
    assert os.read(told, 1) == b"0"
    os.close(told)
    os.close(tell)
