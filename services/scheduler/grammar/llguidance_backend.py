"""Grammars on llguidance: an Earley parser over a lexer of regex derivatives, both with built-in limits.

Every mask is bounded work, which is why grammars that users write run here. Errors of the library are states of a
matcher, not exceptions; once in error a matcher stays there, so tokens are tried before they are consumed.
Knows nothing of where grammar text comes from: `sources` makes it.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.scheduler.grammar.automaton import START, UNKNOWN, Automaton
from services.scheduler.grammar.masks import MaskMemory
from services.scheduler.grammar.matcher_state import MatcherState
from services.scheduler.grammar.state import GrammarOverrun
from services.scheduler.grammar.vocabulary import Vocabulary
from shared.errors import InvalidRequest

_REGEX_FAULT = re.compile(r"regex parse error:\n( +)[^\n]*\n( +)\^+\nerror: ([^\n]*)")
LIMITS = {
    "step_lexer_fuel": 200_000,  # about 15 ms of one mask
    "step_max_items": 100_000,  # about 5 ms of one mask
    "max_items_in_row": 6_000,  # an object takes 4 for each optional property
    "initial_lexer_fuel": 1_000_000,  # about 20 ms when a grammar is built
    "max_lexer_states": 50_000,  # 1 to 2 kB each
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}


REMEMBERED_MASK_BYTES = 64 << 20
REMEMBERED_TEXTS = 4096
"""The library asks for the tokens of a forced text with every mask that stands before one; grammars force few texts."""


class Engine:
    """The library's view of the vocabulary. Built once per process (0.4 s for 150,000 tokens)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance import LLParserLimits, LLTokenizer

        self.vocabulary = vocabulary
        self.words = (vocabulary.size + 1 + 31) // 32
        self.tokenizer: Any = LLTokenizer(_Wrapper(vocabulary), n_vocab=vocabulary.size + 1, eos_token=vocabulary.size)  # type: ignore[arg-type]
        named = vocabulary.special_ids
        self.known = [bool(data) or i in named for i, data in enumerate(vocabulary.token_bytes)]
        self.limits: Any = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        self.memory = MaskMemory(REMEMBERED_MASK_BYTES)

    def build(self, source: str, param: str, automaton: Automaton | None = None) -> LlguidanceGrammar:
        """Build and try a grammar. Bounded by `LIMITS`; releases the interpreter lock.

        Args:
            source: what `LLMatcher.grammar_from_*` returns.
            param: the field to blame.
            automaton: of the same grammar, where it has one: masks are then worked out once for each of its places.

        Raises:
            InvalidRequest: the library refuses it, or no text satisfies it.
        """
        from llguidance import LLMatcher

        matcher: Any = LLMatcher(self.tokenizer, source, log_level=0, limits=self.limits)
        _raise_if_error(matcher, param)
        grammar = LlguidanceGrammar(self, matcher, automaton, 65_536 + 64 * len(source))
        first = grammar.start(frozenset())
        try:
            mask = first.mask()
        except GrammarOverrun as fault:
            text = "no text satisfies it" if "NoExtension" in fault.message else fault.message
            raise InvalidRequest(f"{param}: {text}", param=param) from fault
        if not any(mask):
            raise InvalidRequest(f"{param}: only the empty text satisfies it", param=param)
        grammar.starts_slowly = first.slow
        return grammar


class LlguidanceGrammar:
    """A matcher at its start, which is copied for every request (some microseconds)."""

    backend = "llguidance"

    def __init__(self, engine: Engine, matcher: Any, automaton: Automaton | None, size_bytes: int) -> None:
        self.engine = engine
        self.matcher = matcher
        self.automaton = automaton
        self.size_bytes = size_bytes
        self.starts_slowly = False

    def start(self, stop_ids: frozenset[int]) -> _State:
        return _State(self, stop_ids)


class _State(MatcherState):
    """See `MatcherState`."""

    __slots__ = ("_address", "_automaton", "_grammar", "_known", "_matcher", "_places", "_words")

    def __init__(self, grammar: LlguidanceGrammar, stop_ids: frozenset[int]) -> None:
        super().__init__(grammar.engine.vocabulary, stop_ids, slow=grammar.starts_slowly)
        self._grammar, self._automaton = grammar, grammar.automaton
        self._known = grammar.engine.known
        self._matcher = grammar.matcher.deep_copy()
        self._words = np.zeros(grammar.engine.words, np.int32)
        self._address = self._words.ctypes.data
        self._places = [(UNKNOWN if grammar.automaton is None else START, -1)]
        """Of the automaton, before and behind each token so far; and that token where one byte may be forced, since
        how the library cuts a forced text depends on it, and so does its mask."""

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_accepting()) and not self._matcher.is_error()

    @property
    def exhausted(self) -> bool:
        return bool(self._matcher.is_stopped()) and self.complete

    def forced_text(self) -> bytes:
        return bytes(self._matcher.compute_ff_bytes())

    def mask(self) -> bytes:
        place = self._places[-1]
        if self._mask_here is None and place[0] != UNKNOWN:
            memory, key = self._grammar.engine.memory, (self._grammar, place, self._stop_ids)
            known = memory.get(key)
            self.slow = self.slow and known is None
            self._mask_here = known or memory.put(key, super().mask())
        return super().mask()

    def _take(self, token_id: int) -> bool:
        if not self._known[token_id] or self._matcher.try_consume_tokens([token_id]) != 1:
            return False
        if (automaton := self._automaton) is not None:
            place = automaton.walk(self._places[-1][0], self._vocabulary.token_bytes[token_id])
            self._places.append((place, -1 if place == UNKNOWN or automaton.branches(place) else token_id))
        return True

    def _take_back(self, count: int) -> None:
        done = self._matcher.rollback(count)
        assert done, f"cannot take {count} tokens back: {self._matcher.get_error()}"
        if self._automaton is not None:
            del self._places[len(self._places) - count :]

    def _matcher_mask(self) -> NDArray[np.int32]:
        self._matcher.unsafe_compute_mask_ptr(self._address, 4 * len(self._words))
        if self._matcher.is_error():
            raise GrammarOverrun(f"the grammar is too expensive to follow: {_reason(self._matcher)}")
        return self._words


class _Wrapper:
    """A tokenizer as `LLTokenizer` wants it. The end token is one that the model does not have."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._encode = functools.lru_cache(REMEMBERED_TEXTS)(vocabulary.encode)
        names = {i: text.encode() for text, i in vocabulary.special_tokens.items()}
        self.tokens = [names.get(i, data) for i, data in enumerate(vocabulary.token_bytes)] + [b"<end>"]
        self.special_token_ids = [*sorted(vocabulary.special_ids), vocabulary.size]
        self.eos_token_id = vocabulary.size

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.encode() if isinstance(text, str) else text)


def _raise_if_error(matcher: Any, param: str) -> None:
    if matcher.is_error():
        raise InvalidRequest(f"{param}: {_reason(matcher)}", param=param)


def _reason(matcher: Any) -> str:
    """The library's message in one line, without the dump of its state."""
    text = re.split(r"<state>|<non-verbose/>", str(matcher.get_error()))[0].rstrip()
    if found := _REGEX_FAULT.search(text):
        return f"{found[3]}, at character {len(found[2]) - len(found[1]) + 1}"
    if "coerce_one_of" in text:
        return "a oneOf in which a value might match two branches cannot be enforced: use anyOf, or differing types"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:500]
