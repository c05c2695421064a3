"""A small byte-level vocabulary trained on JSON, grammars built on it without a process, walks through their masks."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from services.scheduler.grammar.automaton import automaton_of
from services.scheduler.grammar.compile_process import CompileProcess
from services.scheduler.grammar.llguidance_backend import Engine
from services.scheduler.grammar.masks import allowed_ids
from services.scheduler.grammar.state import Grammar, GrammarState
from services.scheduler.grammar.vocabulary import Vocabulary, from_tokenizer
from shared.grammar import GrammarSpec
from shared.vocabulary import Vocabulary as TokenizerVocabulary

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|tool|>"]
CORPUS = [
    '{"name":"Alice","age":33,"tags":["red","green"],"city":"Paris","ok":true}',
    '{"id":12,"items":[{"price":1.5,"label":"first item"}],"none":null,"kind":"cat"}',
    "The quick brown fox jumps over the lazy dog. Übermut tut selten gut; naïve café. 日本語 テキスト 😀",
    '"status":"active", "count": 2024-01-01T10:00:00Z false function(a, b) { return a + b; }\n\n',
] * 3


@functools.cache
def vocabulary() -> Vocabulary:
    """600 tokens and some ids of padding, which the model's lm_head has and the tokenizer does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    size = -(-tokenizer.get_vocab_size() // 32) * 32
    return from_tokenizer(TokenizerVocabulary(tokenizer, size, {}))


@functools.cache
def engine() -> Engine:
    return Engine(vocabulary())


STOP = 2
"""Id of <|im_end|>, which ends the requests of these tests."""
STOPS = frozenset({STOP})


def build(spec: GrammarSpec) -> Grammar:
    """A grammar as a compile process makes it, without the process."""
    spec.check()
    return engine().build(_compiling().compile(spec, "llguidance").decode(), spec.kind, automaton_of(spec))


@functools.cache
def _compiling() -> CompileProcess:
    return CompileProcess(vocabulary())


def of_schema(schema: Any, max_whitespace: int = 0) -> Grammar:
    return build(GrammarSpec("json_schema", json.dumps(schema), max_whitespace))


def of_regex(pattern: str) -> Grammar:
    return build(GrammarSpec("regex", pattern))


def of_ebnf(text: str) -> Grammar:
    return build(GrammarSpec("ebnf", text))


@functools.cache
def byte_ids() -> dict[int, int]:
    """The token of each single byte."""
    return {data[0]: i for i, data in reversed(list(enumerate(vocabulary().token_bytes))) if len(data) == 1}


def follow(state: GrammarState, text: str | bytes) -> bool:
    """Take a text byte by byte; False when one is refused."""
    data = text.encode() if isinstance(text, str) else text
    return all(state.accept(byte_ids()[byte]) for byte in data)


def matches(grammar: Grammar, text: str) -> bool:
    """Whether a text is a whole sentence."""
    state = grammar.start(STOPS)
    return follow(state, text) and state.complete


def mask_of(state: GrammarState) -> np.ndarray:
    """Allowed ids, ascending."""
    return allowed_ids(np.frombuffer(state.mask(), np.int32))


def forced(state: GrammarState, context: Sequence[int], limit: int) -> list[int]:
    """What must follow; the state is as it was afterwards."""
    run = state.take_forced(context, limit)
    state.rollback(len(run))
    return run


def walk(grammar: Grammar, seed: int, most_tokens: int = 60, way_out: str = '"}]') -> str:
    """A sentence chosen at random among allowed tokens; after `most_tokens` mostly those that start as `way_out`."""
    rng = random.Random(seed)
    state = grammar.start(STOPS)
    out: list[bytes] = []
    starts = {char.encode()[:1] for char in way_out}
    for step in range(most_tokens * 20):
        allowed = mask_of(state).tolist()
        if state.complete and (step > most_tokens or rng.random() < 0.1 or allowed == [STOP]):
            assert STOP in allowed
            assert state.accept(STOP)
            assert state.ended
            return b"".join(out).decode()
        allowed = [i for i in allowed if i != STOP]
        if step > most_tokens and rng.random() < 0.7:
            closing = [i for i in allowed if vocabulary().token_bytes[i][:1] in starts]
            allowed = [i for i in closing if vocabulary().token_bytes[i] == b'"'] or closing or allowed
        chosen = rng.choice(allowed)
        assert state.accept(chosen), f"{chosen} is in the mask and refused after {b''.join(out)!r}"
        out.append(vocabulary().token_bytes[chosen])
    raise AssertionError(f"no end after {b''.join(out)!r}")
