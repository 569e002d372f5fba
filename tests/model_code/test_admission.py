"""Who runs, who waits, who is sent away."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.common.server.admission import Admission, DrainingError, QueueFullError


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_as_many_run_as_there_are_slots_and_the_next_waits_its_turn() -> None:
    async def work() -> None:
        admission = Admission(slots=1, queue=2)
        order: list[int] = []

        async def request(number: int) -> None:
            async with admission.slot():
                order.append(number)
                assert admission.running == 1
                await asyncio.sleep(0)

        await asyncio.gather(*(request(number) for number in range(3)))
        assert order == [0, 1, 2]
        assert admission.in_flight == 0

    run(work())


def test_fails_when_the_queue_is_full() -> None:
    async def work() -> None:
        admission = Admission(slots=1, queue=0)
        async with admission.slot():
            with pytest.raises(QueueFullError):
                async with admission.slot():
                    pass
        async with admission.slot():
            pass

    run(work())


def test_fails_when_draining_but_who_waits_still_gets_a_turn() -> None:
    async def work() -> None:
        admission = Admission(slots=1, queue=1)
        served = asyncio.Event()

        async def waiting() -> None:
            async with admission.slot():
                served.set()

        async with admission.slot():
            waiter = asyncio.create_task(waiting())
            await settle()
            admission.drain()
            with pytest.raises(DrainingError):
                async with admission.slot():
                    pass
        await waiter
        assert served.is_set()

    run(work())


def test_who_leaves_the_queue_frees_a_place() -> None:
    async def work() -> None:
        admission = Admission(slots=1, queue=1)

        async def waiting() -> None:
            async with admission.slot():
                pass

        async with admission.slot():
            waiter = asyncio.create_task(waiting())
            await settle()
            assert admission.waiting == 1
            waiter.cancel()
            await settle()
            assert admission.waiting == 0
        assert admission.in_flight == 0

    run(work())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=20),
)
def test_no_slot_is_lost_or_given_twice_whoever_is_cancelled_when(
    slots: int, queue: int, requests: list[tuple[int, int]]
) -> None:
    async def work() -> None:
        admission = Admission(slots=slots, queue=queue)

        async def request(steps: int) -> None:
            try:
                async with admission.slot():
                    assert admission.running <= slots
                    for _ in range(steps):
                        await asyncio.sleep(0)
            except QueueFullError:
                pass

        tasks = []
        for steps, cancel_after in requests:
            task = asyncio.create_task(request(steps))
            tasks.append(task)
            for _ in range(cancel_after % 3):
                await asyncio.sleep(0)
            if cancel_after > 4 and tasks:
                tasks[cancel_after % len(tasks)].cancel()
            assert admission.running <= slots
            assert admission.waiting <= queue
        await asyncio.gather(*tasks, return_exceptions=True)
        assert admission.in_flight == 0

    run(work())
