from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.vision.budget import Budget


async def test_what_is_free_is_given_in_the_order_asked() -> None:
    budget, order = Budget(10), []
    release = asyncio.Event()

    async def use(name: str, amount: int) -> None:
        async with budget.hold(amount):
            order.append(name)
            await release.wait()

    tasks = [asyncio.ensure_future(use(name, amount)) for name, amount in (("a", 6), ("b", 6), ("c", 1))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (order, budget.used) == (["a"], 6)  # c does not overtake b
    release.set()
    await asyncio.gather(*tasks)
    assert (order, budget.used) == (["a", "b", "c"], 0)


async def test_what_is_larger_than_all_gets_all_alone() -> None:
    budget = Budget(10)
    async with budget.hold(1000):
        assert budget.used == 10
    assert budget.used == 0


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    budget = Budget(10)
    async with AsyncExitStack() as held:
        await held.enter_async_context(budget.hold(10))
        waiting = asyncio.ensure_future(held.enter_async_context(budget.hold(5)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert budget.used == 0
    async with asyncio.timeout(10), budget.hold(10):
        pass


async def test_a_grant_that_meets_a_cancellation_is_given_back() -> None:
    budget = Budget(10)
    holder = budget.hold(10)
    await holder.__aenter__()
    waiting = asyncio.ensure_future(budget.hold(5).__aenter__())
    await asyncio.sleep(0)
    await holder.__aexit__(None, None, None)
    waiting.cancel()  # granted already, not yet woken
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.used == 0
