"""A server's template is found once for all that ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import rhizome as rz
from rhizome.lang.backends.native import Body, NativeBackend

RENDERINGS = 9
"""Of one attempt, the model's name among them."""


class Counting(NativeBackend):
    """A server of one template, which counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(None, prefix_hints=False)
        self.asked = 0
        self.fails = False

    async def call(self, body: Body) -> Any:
        raise NotImplementedError

    def events(self, body: Body) -> AsyncIterator[Any]:
        raise NotImplementedError

    async def encode(self, source: str | list[dict[str, str]], *, special: bool = True) -> list[int]:
        raise NotImplementedError

    async def decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    async def model_name(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        if self.fails:
            raise rz.BackendError("no server")
        return "some-model"

    async def render(self, messages: list[dict[str, str]]) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        return "".join(f"<{m['role']}>{m['content']}</s>" for m in messages)


async def test_many_programs_share_one_attempt() -> None:
    backend = Counting()
    found = await asyncio.gather(*(backend.chat_template() for _ in range(50)))
    assert all(template is found[0] for template in found)
    assert found[0].get_prefix_and_suffix("user", []) == ("<user>", "</s>")
    assert backend.asked == RENDERINGS


async def test_one_that_is_cancelled_leaves_the_attempt_to_the_others() -> None:
    backend = Counting()
    tasks = [asyncio.create_task(backend.chat_template()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert await tasks[1] is await tasks[2]
    assert tasks[0].cancelled()
    assert backend.asked == RENDERINGS


async def test_a_failed_attempt_is_shared_and_made_again_by_the_next() -> None:
    backend = Counting()
    backend.fails = True
    results = await asyncio.gather(*(backend.chat_template() for _ in range(5)), return_exceptions=True)
    assert [str(result) for result in results] == ["no server"] * 5
    assert backend.asked == 1
    backend.fails = False
    assert (await backend.chat_template()).name == "some-model"
