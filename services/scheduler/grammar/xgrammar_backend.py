"""Grammars on xgrammar: a push-down automaton with masks that are mostly worked out when the grammar is compiled.

Neither compiling nor a mask has a limit of its own. Compiling runs in a process that can be killed; masks run in the
scheduler, so this backend is for grammars that the operator trusts. The package is optional (extra `xgrammar`): it
brings torch and transformers with it, which nothing here uses.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from services.scheduler.grammar.json_grammar import checked_schema
from services.scheduler.grammar.masks import clear_bits
from services.scheduler.grammar.matcher_state import MatcherState
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
        return _State(self, stop_ids)


class _State(MatcherState):
    """See `MatcherState`."""

    __slots__ = ("_matcher", "_words")

    def __init__(self, grammar: XgrammarGrammar, stop_ids: frozenset[int]) -> None:
        import xgrammar

        super().__init__(grammar.engine.vocabulary, stop_ids)
        self._matcher: Any = xgrammar.GrammarMatcher(grammar.compiled)
        self._words = np.zeros((1, grammar.engine.words), np.int32)

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_completed())

    @property
    def exhausted(self) -> bool:
        if not self.complete:
            return False
        words = np.frombuffer(self.mask(), np.int32).copy()
        clear_bits(words, self._stop_ids)
        return not words.any()

    def forced_text(self) -> bytes:
        try:
            return str(self._matcher.find_jump_forward_string()).encode()
        except UnicodeDecodeError:  # within a character
            return b""

    def _take(self, token_id: int) -> bool:
        return bool(self._matcher.accept_token(token_id))

    def _take_back(self, count: int) -> None:
        self._matcher.rollback(count)

    def _matcher_mask(self) -> NDArray[np.int32]:
        self._matcher.fill_next_token_bitmask(self._words, 0)
        words: NDArray[np.int32] = self._words[0]
        return words


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
    try:
        state.mask()
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
