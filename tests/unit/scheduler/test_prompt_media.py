"""What a chunk of a prompt needs of its images, and its ids and positions."""

from __future__ import annotations

import numpy as np
import pytest

from services.scheduler.prompt_media import PromptMedia, words_behind_media
from services.tokenizer.media.rotary_positions import GridSpan, rotary_positions
from shared import messages as m

PLACEHOLDER = 9


def ref(image: int, tokens: int) -> m.EmbeddingRef:
    return m.EmbeddingRef(f"{image:032x}", "v", "/x", tokens, 4, "float32")


A, B = ref(1, 3), ref(2, 8)
# Two words, image A, a word, half of B, a word, the other half.
SPANS = [m.MediaSpan(2, 3, A), m.MediaSpan(6, 4, B), m.MediaSpan(11, 4, B, offset=4)]
IDS = np.array([5, 6, 9, 9, 9, 7, 9, 9, 9, 9, 8, 9, 9, 9, 9, 5], np.int32)
POSITIONS, DELTA = rotary_positions(16, [GridSpan(2, (1, 1, 3)), GridSpan(6, (1, 2, 2)), GridSpan(11, (1, 2, 2))])
PROMPT = PromptMedia(SPANS, IDS, POSITIONS, DELTA)
FLAT = PromptMedia(SPANS, IDS, None, 0)


@pytest.mark.parametrize(
    ("start", "keys"), [(0, {A.key, B.key}), (4, {A.key, B.key}), (5, {B.key}), (14, {B.key}), (15, set())]
)
def test_a_cached_prefix_needs_no_images(start: int, keys: set[str]) -> None:
    assert FLAT.wanted(start).keys() == keys
    assert all(ref.key == key for key, ref in FLAT.wanted(start).items())


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 100])
def test_runs_of_all_chunks_cover_every_embedding_once(chunk: int) -> None:
    covered = []
    for start in range(0, len(IDS), chunk):
        count = min(chunk, len(IDS) - start)
        for at, n, key, first in FLAT.runs(start, count):
            assert 0 <= at < at + n <= count
            covered += [(start + at + i, key, first + i) for i in range(n)]
    assert covered == [(span.start + i, span.ref.key, span.offset + i) for span in SPANS for i in range(span.tokens)]


def test_a_chunk_of_words_has_no_runs() -> None:
    assert list(FLAT.runs(5, 1)) == []
    assert list(FLAT.runs(16, 10)) == []


def test_the_model_never_sees_the_cache_s_ids() -> None:
    cached = np.where(IDS == PLACEHOLDER, -7, IDS).astype(np.int32)
    for start in range(16):
        assert FLAT.ids(cached[start:], start).tolist() == IDS[start:].tolist()
    generated = np.array([11, 12], np.int32)
    assert FLAT.ids(np.concatenate((cached[14:], generated)), 14).tolist() == [9, 5, 11, 12]


def test_positions_behind_the_prompt_follow_from_the_index() -> None:
    got = PROMPT.positions_of(10, 8)
    np.testing.assert_array_equal(got[:, :6], POSITIONS[:, 10:])
    assert got[:, 6:].tolist() == [[16 + DELTA, 17 + DELTA]] * 3
    assert int(POSITIONS.max()) + 1 == 16 + DELTA  # which goes on where the prompt ends
    assert FLAT.positions_of(3, 2).tolist() == [[3, 4]] * 3


def test_only_chunks_whose_positions_turn_need_three_dimensions() -> None:
    assert PROMPT.turns(0, 16)
    assert PROMPT.turns(2, 3)
    assert PROMPT.turns(0, 1)  # a word before the images: delta does not apply to it yet
    assert not PROMPT.turns(15, 1)
    assert not PROMPT.turns(15, 5)
    assert not PROMPT.turns(16, 5)
    assert not FLAT.turns(0, 16)


@pytest.mark.parametrize(
    ("tokens", "words"), [([5, 6], [5, 6]), ([5, -2, 6, 7], [6, 7]), ([5, -2], []), ([-2, 5, -3, -3, 6], [6]), ([], [])]
)
def test_only_words_behind_the_last_image_are_text(tokens: list[int], words: list[int]) -> None:
    assert words_behind_media(np.array(tokens, np.int32)).tolist() == words
