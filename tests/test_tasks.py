"""The helpers for asyncio."""

import asyncio

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
