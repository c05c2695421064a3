"""Bytes of tokens and canonical cuts, for every family of tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.scheduler.grammar.llguidance_backend import Engine
from services.scheduler.grammar.sources import llguidance_source
from services.scheduler.grammar.vocabulary import Vocabulary, from_tokenizer, load_vocabulary
from shared.errors import ConfigError
from shared.grammar import GrammarSpec
from tests.unit.scheduler.grammar.tiny import vocabulary
from tests.unit.tokenizer import tiny as families

TEXTS = ['{"name":"Über 日本 😀","n":1}', " two  spaces\n", "don't", "", "x"]
FAMILIES = (families.byte_level, families.byte_fallback, families.gemma_like)


def of(tokenizer: Tokenizer) -> Vocabulary:
    return from_tokenizer(families.vocabulary(tokenizer))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_cut_are_the_text(family: object, text: str) -> None:
    found = of(family())  # type: ignore[operator]
    assert found.text_of(found.encode(text.encode())) == text.encode()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_json_can_be_followed_with_every_family(family: object) -> None:
    found = of(family())  # type: ignore[operator]
    engine = Engine(found)
    state = engine.build(llguidance_source(GrammarSpec("json_object"), {}), "json_object").start(frozenset())
    ids = found.encode('{"the quick":[1,"é😀"]}'.encode())
    assert all(state.accept(i) for i in ids)
    assert state.complete


def test_a_cut_behind_a_context_is_that_of_the_whole_text() -> None:
    found = vocabulary()
    whole = b'{"name":"Alice","age":33,"tags":["red","green"]}'
    ids = found.encode(whole)
    for at in range(1, len(ids)):
        assert found.encode_after(found.text_of(ids[:at]), found.text_of(ids[at:])) == ids[at:]


def test_a_token_across_the_boundary_is_no_clean_cut() -> None:
    found = vocabulary()
    pair = next(data for data in found.token_bytes if len(data) == 2 and data.isalpha())
    assert found.encode_after(pair[:1], pair[1:]) is None


def test_special_tokens_have_no_bytes_and_their_text_is_cut_as_text() -> None:
    found = vocabulary()
    assert found.special_tokens["<|im_end|>"] == 2
    assert found.token_bytes[2] == b""
    ids = found.encode(b"a<|im_end|>b")
    assert found.text_of(ids) == b"a<|im_end|>b"
    assert not {*ids} & found.special_ids


def test_a_vocabulary_survives_the_way_to_another_process() -> None:
    found = vocabulary()
    copy = Vocabulary.unpack(*found.pack())
    assert copy.token_bytes == found.token_bytes
    assert copy.special_tokens == found.special_tokens
    assert copy.text_of(copy.encode(b'{"name":"\xc3\xa9')) == b'{"name":"\xc3\xa9'


@pytest.mark.parametrize("family", [families.word_piece, families.no_decoder, families.end_of_word])
def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused(family: object) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json has the decoder"):
        of(family())  # type: ignore[operator]


def test_a_model_directory_is_read_with_its_padding(tmp_path: Path) -> None:
    folder = families.write_model(tmp_path / "model")
    found = load_vocabulary(folder)
    assert found.size == families.byte_level().get_vocab_size() + 3
    assert found.token_bytes[-3:] == [b""] * 3
    assert {*found.special_tokens} == {*families.SPECIALS}
