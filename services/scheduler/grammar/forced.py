"""Which tokens must come next: the compressed FSM at the level of tokens.

Where the grammar leaves one text, it is cut into tokens as the tokenizer would cut it behind the text before it, and
every token is tried on the state. Two rules keep what the model sees canonical: tokens that already exist never change,
and the last token is held back when what follows could merge with it. Works on any `ForcedState`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.scheduler.grammar.vocabulary import Vocabulary


class ForcedState(Protocol):
    """What a backend's state offers beyond `GrammarState`."""

    def accept(self, token_id: int) -> bool: ...
    def rollback(self, count: int) -> None: ...
    def only_token(self) -> int | None:
        """The single token that the mask allows, None when there are more (or the engine gave up)."""
        ...

    def forced_text(self) -> bytes:
        """Bytes that must come next; may end within a character."""
        ...

    @property
    def complete(self) -> bool: ...
    @property
    def exhausted(self) -> bool: ...
    @property
    def ended(self) -> bool: ...


def take_forced(
    state: ForcedState,
    vocabulary: Vocabulary,
    stop_ids: frozenset[int],
    context: Sequence[int],
    limit: int,
    before: frozenset[int],
) -> list[int]:
    """Implements `GrammarState.take_forced`.

    A text is forced before single tokens are looked at: it needs no mask. A stop token is forced when it is the only
    thing that may follow, and the only one of its kind.
    """
    taken: list[int] = []
    while len(taken) < limit and not state.ended:
        if state.exhausted:
            step = list(stop_ids) if len(stop_ids) == 1 else []
        elif state.complete:
            step = []
        else:
            text = _whole_characters(state.forced_text())
            step = _cut(vocabulary, [*context, *taken], text) if text else []
        most = min(limit - len(taken), next((n for n, token_id in enumerate(step) if token_id in before), len(step)))
        accepted = _accept(state, step[:most])
        taken += step[:accepted]
        if not accepted or accepted < len(step):
            break
        if not (state.ended or state.exhausted):
            if not _settled(state, taken):
                taken.pop()
            break
    return taken


def _accept(state: ForcedState, token_ids: Sequence[int]) -> int:
    """How many of the tokens the state takes, without running past the end of a sentence."""
    for n, token_id in enumerate(token_ids):
        if (n and state.complete and not state.exhausted) or not state.accept(token_id):
            return n
    return len(token_ids)


def _settled(state: ForcedState, taken: Sequence[int]) -> bool:
    """Whether the last token is the only one that the mask allows in its place; if not, it is taken back."""
    state.rollback(1)
    return state.only_token() == taken[-1] and state.accept(taken[-1])


def _cut(vocabulary: Vocabulary, before: Sequence[int], text: bytes) -> list[int]:
    """Tokens of `text` behind the tokens `before`."""
    start = next((i + 1 for i in reversed(range(len(before))) if before[i] in vocabulary.special_ids), 0)
    ids = vocabulary.encode_after(vocabulary.text_of(before[start:]), text)
    return vocabulary.encode(text) if ids is None else ids


def _whole_characters(data: bytes) -> bytes:
    """`data` without a character that its end leaves unfinished."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return data if length <= back else data[:-back]
    return data
