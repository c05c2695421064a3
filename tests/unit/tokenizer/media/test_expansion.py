"""Placeholders become as many tokens as there are embeddings, each naming its own rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from services.tokenizer.media.expansion import Expansion, MediaPrompt
from services.tokenizer.media.placeholders import placeholders_of
from services.tokenizer.media.rotary_positions import GridSpan, rotary_positions
from shared import messages as m
from shared.errors import InvalidRequest
from shared.media_config import MediaConfig, load_media_config
from shared.messages.embedding import MediaKind
from shared.vocabulary import load_vocabulary
from tests.fakes.vlm_checkpoints import TOKEN_IDS, VOCAB_SIZE, original_llava_checkpoint
from tests.unit.vision.checkpoints import checkpoint, media_config

IMAGE, VIDEO = TOKEN_IDS["<|image_pad|>"], TOKEN_IDS["<|video_pad|>"]
START, END = TOKEN_IDS["<|vision_start|>"], TOKEN_IDS["<|vision_end|>"]
A, B, C = 65, 66, 67


def encode(text: str) -> list[int]:
    return list(text.encode())


def expansion_of(family: str, config: MediaConfig | None = None) -> Expansion:
    path = checkpoint(family)[0]
    config = config or media_config(family)
    return Expansion(config, placeholders_of(config, load_vocabulary(path, VOCAB_SIZE)), encode)


def item(number: int, grid: list[int], kind: MediaKind = "image", **more: object) -> m.EncodedMedia:
    """Encoded media of `grid` tokens, or of `grid[0]` where it has no grid."""
    ref = m.EmbeddingRef(f"{number:032x}", "vision-0", f"/shm/{number}", int(np.prod(grid)), 4, "float32")
    return m.EncodedMedia(kind, ref, grid if len(grid) == 3 else [], **more)  # type: ignore[arg-type]


def rows_of(prompt: MediaPrompt) -> list[tuple[int, str, int]]:
    """For each token with an embedding: its place, the item and the row."""
    return [
        (span.start + i, span.ref.key, span.offset + i) for span in prompt.spans for i in range(span.tokens)
    ]  # fmt: skip


def test_each_image_takes_the_place_of_its_own_placeholder() -> None:
    media = [item(1, [1, 2, 3]), item(2, [1, 1, 2])]
    prompt = expansion_of("qwen2_vl").expand([A, START, IMAGE, END, B, IMAGE, C], media, "messages")
    assert prompt.token_ids == [A, START, *[IMAGE] * 6, END, B, IMAGE, IMAGE, C]
    assert prompt.spans == [m.MediaSpan(2, 6, media[0].ref), m.MediaSpan(10, 2, media[1].ref)]
    assert prompt.media_tokens == 8


def test_neighbours_and_edges_need_no_words_around_them() -> None:
    media = [item(1, [1, 2, 2]), item(2, [1, 1, 1]), item(1, [1, 2, 2])]
    prompt = expansion_of("qwen2_vl").expand([IMAGE] * 3, media, "messages")
    assert prompt.token_ids == [IMAGE] * 9
    assert [(span.start, span.tokens) for span in prompt.spans] == [(0, 4), (4, 1), (5, 4)]


def test_positions_go_with_the_expanded_prompt() -> None:
    media = [item(1, [1, 2, 3]), item(2, [2, 1, 2], "video")]
    prompt = expansion_of("qwen2_vl").expand([A, IMAGE, B, VIDEO, C], media, "messages")
    want, delta = rotary_positions(13, [GridSpan(1, (1, 2, 3)), GridSpan(8, (2, 1, 2))])
    assert prompt.positions is not None
    np.testing.assert_array_equal(prompt.positions, want)
    assert prompt.position_delta == delta == int(want.max()) + 1 - 13 < 0


def test_time_in_a_video_of_qwen2_5_is_counted_in_its_seconds() -> None:
    video = item(1, [3, 1, 1], "video", seconds_per_frame=1.0)
    positions = expansion_of("qwen2_5_vl").expand([A, VIDEO, B], [video], "messages").positions
    assert positions is not None
    assert positions[0].tolist() == [0, 1, 3, 5, 2]  # two positions a second; the next word is behind the longer side
    flat = expansion_of("qwen2_vl").expand([A, VIDEO, B], [video], "messages").positions
    assert flat is not None
    assert flat[0].tolist() == [0, 1, 2, 3, 2]


def test_llava_has_neither_grids_nor_positions() -> None:
    token = TOKEN_IDS["<image>"]
    prompt = expansion_of("llava_next").expand([A, token, B], [item(1, [5])], "messages")
    assert prompt.token_ids == [A, *[token] * 5, B]
    assert (prompt.positions, prompt.position_delta) == (None, 0)


def test_a_long_video_moves_positions_ahead_of_indices() -> None:
    """Few tokens that take much time: the context has to have room for the positions too."""
    video = item(1, [4, 1, 1], "video", seconds_per_frame=10.0)
    prompt = expansion_of("qwen2_5_vl").expand([A, VIDEO], [video], "messages")
    assert prompt.position_delta == 1 + 3 * 20 + 1 - 5


QWEN3_VIDEO = item(7, [2, 1, 3], "video", timestamps_s=[0.25, 12.0])
FIRST = [*encode("<0.2 seconds>"), START, VIDEO, VIDEO, VIDEO, END]
SECOND = [*encode("<12.0 seconds>"), START, VIDEO, VIDEO, VIDEO, END]


@pytest.mark.parametrize(
    "placeholder", [[START, VIDEO, END], [VIDEO]], ids=["between marks of vision", "alone"]
)  # fmt: skip
def test_qwen3_tells_the_time_before_each_frame(placeholder: list[int]) -> None:
    prompt = expansion_of("qwen3_vl").expand([A, *placeholder, B], [QWEN3_VIDEO], "messages")
    assert prompt.token_ids == [A, *FIRST, *SECOND, B]
    at = [i for i, token in enumerate(prompt.token_ids) if token == VIDEO]
    assert rows_of(prompt) == [(place, QWEN3_VIDEO.ref.key, row) for row, place in enumerate(at)]
    want, delta = rotary_positions(len(prompt.token_ids), [GridSpan(at[0], (1, 1, 3)), GridSpan(at[3], (1, 1, 3))])
    assert prompt.positions is not None
    np.testing.assert_array_equal(prompt.positions, want)
    assert prompt.position_delta == delta


def test_qwen3_s_videos_at_the_edges_and_next_to_each_other() -> None:
    expansion = expansion_of("qwen3_vl")
    frames = [*FIRST, *SECOND]
    assert expansion.expand([VIDEO], [QWEN3_VIDEO], "messages").token_ids == frames
    assert expansion.expand([VIDEO, END], [QWEN3_VIDEO], "messages").token_ids == [*frames, END]
    assert expansion.expand([START, VIDEO], [QWEN3_VIDEO], "messages").token_ids == [START, *frames]
    twice = [START, VIDEO, END, START, VIDEO, END]
    assert expansion.expand(twice, [QWEN3_VIDEO] * 2, "messages").token_ids == frames * 2


def test_qwen3_s_images_are_not_split() -> None:
    prompt = expansion_of("qwen3_vl").expand([START, IMAGE, END], [item(1, [1, 2, 2])], "messages")
    assert prompt.token_ids == [START, *[IMAGE] * 4, END]


PICTURE, FILM = item(1, [1, 1, 1]), item(2, [1, 1, 1], "video")


@pytest.mark.parametrize(
    ("ids", "media", "says"),
    [
        ([A], [PICTURE], "places for 0 images and 0 videos but there are 1 images and 0 videos"),
        ([IMAGE, IMAGE], [PICTURE], "places for 2 images and 0 videos but there are 1 images"),
        ([IMAGE], [PICTURE, PICTURE], "places for 1 images"),
        ([VIDEO], [PICTURE], "places for 0 images and 1 videos"),
        ([VIDEO, IMAGE], [PICTURE, FILM], "or their order differs"),
        ([IMAGE, VIDEO, VIDEO], [PICTURE, FILM], "places for 1 images and 2 videos"),
    ],
)
def test_places_that_do_not_match_are_refused_with_how_to_mark_them(
    ids: list[int], media: list[m.EncodedMedia], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        expansion_of("qwen2_vl").expand(ids, media, "prompt")
    assert refused.value.param == "prompt"
    assert "'<|image_pad|>' and '<|video_pad|>'" in refused.value.message


def test_a_prompt_of_an_original_llava_is_written_with_image_and_read_with_a_token_that_it_has(tmp_path: Path) -> None:
    path, _ = original_llava_checkpoint(tmp_path)
    config, vocabulary = load_media_config(path), load_vocabulary(path, VOCAB_SIZE)
    assert config is not None
    expansion = Expansion(config, placeholders_of(config, vocabulary), encode)
    spelled = expansion.spelled("Look: <image>\n<image> What?")
    assert "<image>" not in spelled
    prompt = expansion.expand(
        vocabulary.encode(spelled, add_special_tokens=False), [item(1, [3]), item(2, [2])], "messages"
    )
    token = config.image_token_id
    assert prompt.token_ids == [
        *vocabulary.encode("Look: ", add_special_tokens=False), *[token] * 3,
        *vocabulary.encode("\n", add_special_tokens=False), token, token,
        *vocabulary.encode(" What?", add_special_tokens=False),
    ]  # fmt: skip


def test_a_text_with_a_known_placeholder_stays_as_it_is() -> None:
    assert expansion_of("qwen2_vl").spelled("a <image> <|image_pad|>") == "a <image> <|image_pad|>"


def test_the_expansion_of_an_unknown_time_base_is_not_guessed() -> None:
    """Without a time base a joined frame is one position, whatever its seconds."""
    config = dataclasses.replace(media_config("qwen2_5_vl"), tokens_per_second=None)
    video = item(1, [2, 1, 1], "video", seconds_per_frame=9.0)
    positions = expansion_of("qwen2_5_vl", config).expand([VIDEO], [video], "messages").positions
    assert positions is not None
    assert positions[0].tolist() == [0, 1]
