"""Grammars on xgrammar: a push-down automaton with masks that are mostly worked out when the grammar is compiled.

Neither compiling nor a mask has a limit of its own. Compiling runs in a process that can be killed; masks run in the
scheduler, so this backend is for grammars that the operator trusts. The package is optional (extra `xgrammar`): it
brings torch and transformers with it, which nothing here uses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from services.scheduler.grammar.budget import MaskBudget
from services.scheduler.grammar.forced import forced_tokens
from services.scheduler.grammar.json_grammar import checked_schema
from services.scheduler.grammar.masks import clear_bits, only_bit, set_bits
from services.scheduler.grammar.regex_check import check_regex
from services.scheduler.grammar.schema_check import Schema, SchemaFault, parse_schema, subschemas
from services.scheduler.grammar.sources import parse_choices
from services.scheduler.grammar.state import GrammarOverrun
from services.scheduler.grammar.vocabulary import Vocabulary
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec

_SOURCE_LINE = re.compile(r"^(\[[\d:]+\] )?\S*\.cc:\d+: (Check failed: \(.*\) is false: )?")
NOT_ENFORCED = ("multipleOf", "oneOf", "allOf", "patternProperties", "minProperties", "maxProperties", "format")
"""Keywords that llguidance enforces and xgrammar does not, or only at times."""


class Engine:
    """The library's view of the vocabulary. One end token more than the model has: id V, never shown to anybody."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar

        self.vocabulary = vocabulary
        self.words = (vocabulary.size + 1 + 31) // 32
        self.info: Any = xgrammar.TokenizerInfo(
            [*vocabulary.token_bytes, b""],
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=vocabulary.size + 1,
            stop_token_ids=[vocabulary.size],
        )

    def compile(self, spec: GrammarSpec) -> bytes:
        """Compile to what `load` reads. May take for ever: call it where it can be killed.

        Raises:
            InvalidRequest: the text is wrong, or asks for what the library does not enforce.
        """
        import xgrammar

        compiler: Any = xgrammar.GrammarCompiler(self.info, max_threads=1, cache_enabled=False)
        try:
            compiled = _compile(compiler, spec)
            data = str(compiled.serialize_json()).encode()
        except (RuntimeError, ValueError, RecursionError) as fault:
            raise InvalidRequest(f"{spec.kind}: {_reason(fault)}", param=spec.kind) from fault
        _check_start(XgrammarGrammar(self, compiled), spec)
        return data

    def load(self, data: bytes) -> XgrammarGrammar:
        """The grammar that `compile` made, in another process perhaps."""
        import xgrammar

        compiled: Any = xgrammar.CompiledGrammar.deserialize_json(data.decode(), self.info)
        return XgrammarGrammar(self, compiled)


class XgrammarGrammar:
    """A compiled grammar; every request has a matcher of its own."""

    backend = "xgrammar"

    def __init__(self, engine: Engine, compiled: Any) -> None:
        self.engine = engine
        self.compiled = compiled
        self.size_bytes = int(compiled.memory_size_bytes)

    def start(self, stop_ids: frozenset[int]) -> _State:
        return _State(self, frozenset(i for i in stop_ids if 0 <= i < self.engine.vocabulary.size))


class _State:
    """See `state.GrammarState`."""

    __slots__ = ("_budget", "_engine", "_matcher", "_stop_ids", "_stops_taken", "_words")

    def __init__(self, grammar: XgrammarGrammar, stop_ids: frozenset[int]) -> None:
        import xgrammar

        self._engine = grammar.engine
        self._matcher: Any = xgrammar.GrammarMatcher(grammar.compiled)
        self._stop_ids = stop_ids
        self._stops_taken = 0
        self._words = np.zeros((1, self._engine.words), np.int32)
        self._budget = MaskBudget()

    @property
    def ended(self) -> bool:
        return self._stops_taken > 0

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_completed())

    @property
    def exhausted(self) -> bool:
        if not self.complete:
            return False
        words = self._compute()
        clear_bits(words, self._stop_ids)
        return not words.any()

    def accept(self, token_id: int) -> bool:
        if self._stops_taken:
            return False
        if token_id in self._stop_ids:
            self._stops_taken = int(self.complete)
            return self._stops_taken > 0
        return 0 <= token_id < self._engine.vocabulary.size and bool(self._matcher.accept_token(token_id))

    def rollback(self, count: int) -> None:
        stops = min(count, self._stops_taken)
        self._stops_taken -= stops
        if count > stops:
            self._matcher.rollback(count - stops)

    def fill(self, mask: NDArray[np.int32]) -> None:
        assert not self._stops_taken, "nothing may follow a stop token"
        mask[:] = self._compute()[: len(mask)]
        if not mask.any() and not self.complete:
            raise GrammarOverrun("the grammar came to a place where no token of this model can follow")

    def _compute(self) -> NDArray[np.int32]:
        self._budget.begin()
        self._matcher.fill_next_token_bitmask(self._words, 0)
        self._budget.end()
        words = self._words[0]
        clear_bits(words, (self._engine.vocabulary.size,))
        (set_bits if self.complete else clear_bits)(words, self._stop_ids)
        return words

    def only_token(self) -> int | None:
        try:
            return only_bit(self._compute())
        except GrammarOverrun:
            return None

    def forced_text(self) -> bytes:
        try:
            return str(self._matcher.find_jump_forward_string()).encode()
        except UnicodeDecodeError:  # within a character
            return b""

    def forced(self, context: Sequence[int], limit: int) -> list[int]:
        return forced_tokens(self, self._engine.vocabulary, self._stop_ids, context, limit)


def _compile(compiler: Any, spec: GrammarSpec) -> Any:
    match spec.kind:
        case "json_object" | "json_schema":
            schema = {"type": "object"} if spec.kind == "json_object" else checked_schema(parse_schema(spec.source))
            _check_schema(schema)
            limit = spec.max_whitespace
            style = {"separators": (",", ":")} if limit == 0 else {"max_whitespace_cnt": limit}
            return compiler.compile_json_schema(orjson.dumps(schema).decode(), any_whitespace=limit > 0, **style)
        case "regex":
            check_regex(spec.source, "regex")
            return compiler.compile_regex(spec.source)
        case "ebnf":
            return compiler.compile_grammar(spec.source)
        case "choice":
            branches = " | ".join(orjson.dumps(text).decode() for text in parse_choices(spec.source))
            return compiler.compile_grammar(f"root ::= {branches}")
        case "structural_tag":
            return compiler.compile_structural_tag(spec.source)
    raise InvalidRequest(f"unknown kind of grammar {spec.kind!r}", param="grammar")


def _check_schema(schema: Schema) -> None:
    """Refuse what this library would ignore."""
    for path, node in subschemas(schema):
        for keyword in NOT_ENFORCED if isinstance(node, dict) else ():
            if keyword in node:  # type: ignore[operator]
                raise SchemaFault(f"{path}/{keyword}", "cannot be enforced with --grammar-backend xgrammar")


def _check_start(grammar: XgrammarGrammar, spec: GrammarSpec) -> None:
    state = grammar.start(frozenset())
    mask = np.zeros((grammar.engine.vocabulary.size + 31) // 32, np.int32)
    try:
        state.fill(mask)
    except GrammarOverrun as fault:
        raise InvalidRequest(f"{spec.kind}: no text satisfies it", param=spec.kind) from fault
    if state.exhausted:
        raise InvalidRequest(f"{spec.kind}: only the empty text satisfies it", param=spec.kind)


def _reason(fault: Exception) -> str:
    """The library's message without its C++ source line."""
    if "bad_alloc" in str(fault):
        return "it needs too much memory to compile"
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return _SOURCE_LINE.sub("", lines[-1])[:500] if lines else type(fault).__name__
