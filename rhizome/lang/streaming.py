"""Reading a state's text while it grows, from a thread, from its own loop or from another."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from rhizome.lang.loops import await_on

if TYPE_CHECKING:
    from rhizome.lang.state import StateBase

Piece = tuple[str, dict[str, Any] | None]
Pieces = AsyncGenerator[Piece, None]


def pieces(state: StateBase, var_name: str | None) -> Pieces:
    """What is new since the last piece, until the text or the variable is complete. Runs on the state's loop.

    For the program's function itself the text is complete when all that it appended so far is done.

    Raises:
        ProgramError: it could not be completed; pieces that were there came before.
        UnknownVariable: the program ended without it, or the function itself asks before it appended it.
    """
    return _text(state) if var_name is None else _variable(state, var_name)


async def _text(state: StateBase) -> Pieces:
    executor, seen = state._executor, 0
    executor.flush()
    while True:
        done = executor.error is not None or (executor.is_drained and not executor.run.may_grow)
        text = executor.text if done else executor.convo.text
        if len(text) > seen:
            piece = text[seen:]
            seen += len(piece)
            yield piece, None
        elif done:
            await state._synced()
            return
        else:
            await executor.changed.wait()


async def _variable(state: StateBase, name: str) -> Pieces:
    slot, seen = await state._declared(name), 0
    slot.wanted = True
    if slot.demand is not None:
        slot.demand()
    while True:
        if len(slot.partial) > seen:
            piece = slot.partial[seen:]
            seen += len(piece)
            yield piece, slot.meta
        elif slot.done:
            slot.result()
            return
        else:
            await slot.changed.wait()


async def following(source: Pieces) -> Piece | None:
    """The next piece; None at the end."""
    return await anext(source, None)


async def ended(source: Pieces) -> None:
    """Nobody reads on."""
    await source.aclose()


async def on_any_loop(state: StateBase, var_name: str | None, with_meta: bool) -> AsyncIterator[Any]:
    """Pieces, or pairs of pieces and meta information, for the loop of the caller."""
    loop, source = state._executor.run.loop, pieces(state, var_name)
    try:
        while (piece := await await_on(loop, following(source))) is not None:
            yield piece if with_meta else piece[0]
    finally:
        await await_on(loop, ended(source))
