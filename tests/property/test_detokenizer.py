"""Incremental decoding against one-shot decoding, for any ids in any order, for every decoder family."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.tokenizer.detokenizer import Detokenizers
from shared.decode_tables import ByteTable, PieceTable, build_table
from shared.vocabulary import Vocabulary
from tests.unit.tokenizer import tiny

EXACT: dict[str, tuple[Callable[[], Tokenizer], type]] = {
    "byte_level": (tiny.byte_level, ByteTable),
    "byte_fallback": (tiny.byte_fallback, PieceTable),
    "gemma_like": (tiny.gemma_like, PieceTable),
    "metaspace": (tiny.metaspace, PieceTable),
    "word_piece": (tiny.word_piece, PieceTable),
    "no_decoder": (tiny.no_decoder, PieceTable),
}


@functools.cache
def loaded(name: str) -> tuple[Vocabulary, Detokenizers]:
    vocabulary = tiny.vocabulary(EXACT[name][0]())
    return vocabulary, Detokenizers(vocabulary)


def streamed(detokenizers: Detokenizers, ids: list[int], skip: bool) -> list[str]:
    detokenizer = detokenizers.new(skip_special_tokens=skip)
    return [*(detokenizer.add(i) for i in ids), detokenizer.finish()]


@pytest.mark.parametrize("name", EXACT)
def test_each_family_gets_the_table_it_should(name: str) -> None:
    assert type(build_table(loaded(name)[0])) is EXACT[name][1]


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_ids_streamed_one_by_one_equal_one_shot_decoding(name: str, data: st.DataObject, skip: bool) -> None:
    vocabulary, detokenizers = loaded(name)
    ids = data.draw(st.lists(st.integers(0, vocabulary.size - 1), max_size=40))
    assert "".join(streamed(detokenizers, ids, skip)) == vocabulary.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "gemma_like"])
@given(raw=st.lists(st.integers(0, 255), max_size=30), seed=st.integers(0, 2**16))
@settings(max_examples=200, deadline=None)
def test_raw_bytes_valid_or_not_equal_one_shot_decoding(name: str, raw: list[int], seed: int) -> None:
    vocabulary, detokenizers = loaded(name)
    table = build_table(vocabulary)
    single = {detokenizers.token_bytes(i): i for i in range(vocabulary.size) if len(detokenizers.token_bytes(i)) == 1}
    if isinstance(table, PieceTable):
        single |= {bytes((b,)): i for i, b in table.byte_of.items()}
    ids = [single[bytes((b,))] for b in raw]
    for i in range(random.Random(seed).randint(0, 3)):  # special tokens in between
        ids.insert(random.Random(seed + i).randint(0, len(ids)), min(vocabulary.special_ids))
    for skip in (True, False):
        assert "".join(streamed(detokenizers, ids, skip)) == vocabulary.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@given(text=st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_no_piece_of_a_valid_text_ever_shows_half_a_character(name: str, text: str) -> None:
    vocabulary, detokenizers = loaded(name)
    ids = vocabulary.encode(text.replace("\ufffd", ""), add_special_tokens=False)
    whole = vocabulary.decode(ids, skip_special_tokens=False)
    pieces = streamed(detokenizers, ids, False)
    assert "".join(pieces) == whole
    assert not any("\ufffd" in piece for piece in pieces)


@given(text=st.text(alphabet="abcdefg hij. é", max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_decoder_without_a_table_streams_what_one_shot_decoding_gives(text: str) -> None:
    vocabulary = tiny.vocabulary(tiny.end_of_word())
    assert build_table(vocabulary) is None
    ids = vocabulary.encode(text, add_special_tokens=False)
    pieces = streamed(Detokenizers(vocabulary), ids, False)
    assert "".join(pieces) == vocabulary.decode(ids, skip_special_tokens=False)


@functools.cache
def real() -> tuple[Vocabulary, Detokenizers]:
    vocabulary = tiny.real_vocabulary()
    return vocabulary, Detokenizers(vocabulary)


@given(ids=st.lists(st.integers(0, 49151), max_size=60), text=st.text(max_size=60), skip=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_default_models_tokenizer_streams_exactly(ids: list[int], text: str, skip: bool) -> None:
    vocabulary, detokenizers = real()
    for sequence in (ids, vocabulary.encode(text, add_special_tokens=False)):
        assert "".join(streamed(detokenizers, sequence, skip)) == vocabulary.decode(sequence, skip_special_tokens=skip)
