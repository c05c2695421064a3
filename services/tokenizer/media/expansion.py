"""A prompt with one placeholder for each image and video becomes one with a token for each of their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from services.tokenizer.media.placeholders import Placeholders
from services.tokenizer.media.rotary_positions import GridSpan, rotary_positions
from shared import messages as m
from shared.errors import InvalidRequest
from shared.media_config import MediaConfig

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """What media add to a prompt's ids."""

    token_ids: list[int]
    spans: list[m.MediaSpan] = field(default_factory=list)
    positions: I32 | None = None
    """[3, tokens], for models with positions of three dimensions"""
    position_delta: int = 0

    @property
    def media_tokens(self) -> int:
        return sum(span.tokens for span in self.spans)


class Expansion:
    """Of one model. Immutable."""

    def __init__(self, config: MediaConfig, placeholders: Placeholders, encode: Callable[[str], list[int]]) -> None:
        """encode: words to ids, without special tokens of its own."""
        self._config, self._placeholders, self._encode = config, placeholders, encode

    def spelled(self, text: str) -> str:
        """A text with media's places as the tokenizer knows them, where it has no token of what is written."""
        written, known = self._placeholders.written, self._placeholders.known
        return text if written == known else text.replace(written, known)

    def expand(self, token_ids: Sequence[int], media: Sequence[m.EncodedMedia], param: str) -> MediaPrompt:
        """Put media into the places of their placeholders, in order.

        Raises:
            InvalidRequest: there are more of one than of the other; naming `param`.
        """
        ids = np.asarray(token_ids, np.int64)
        of_kind = {token_id: kind for kind, token_id in self._placeholders.ids.items()}
        places = np.flatnonzero(np.isin(ids, list(of_kind))).tolist()
        if [of_kind[int(ids[place])] for place in places] != [item.kind for item in media]:
            raise InvalidRequest(self._mismatch([of_kind[int(ids[place])] for place in places], media), param=param)
        builder = _Builder()
        at = 0
        for place, item in zip(places, media, strict=True):
            if item.kind == "video" and self._config.family == "qwen3_vl":
                at = self._expand_frames(builder, token_ids, at, place, item)
            else:
                builder.words(token_ids[at:place])
                builder.media(item, int(ids[place]), 0, item.ref.tokens, self._span(item))
                at = place + 1
        builder.words(token_ids[at:])
        if not self._config.mrope:
            return MediaPrompt(builder.ids, builder.spans)
        positions, delta = rotary_positions(len(builder.ids), builder.grids)
        return MediaPrompt(builder.ids, builder.spans, positions, delta)

    def _span(self, item: m.EncodedMedia) -> tuple[tuple[int, int, int], float]:
        if len(item.grid) != 3:
            return (1, 1, item.ref.tokens), 1.0
        step = 1.0
        if item.kind == "video" and self._config.tokens_per_second is not None:
            step = self._config.tokens_per_second * item.seconds_per_frame
        return (item.grid[0], item.grid[1], item.grid[2]), step

    def _expand_frames(
        self, builder: _Builder, token_ids: Sequence[int], at: int, place: int, item: m.EncodedMedia
    ) -> int:
        """Qwen3-VL's videos: every frame behind its time in words. Returns where the rest of the prompt begins."""
        config = self._config
        begin, end = config.vision_start_token_id, config.vision_end_token_id
        assert begin is not None
        assert end is not None
        wrapped = token_ids[place - 1 : place + 2] == [begin, token_ids[place], end] if place > at else False
        builder.words(token_ids[at : place - 1 if wrapped else place])
        frames, height, width = item.grid
        tokens = height * width
        for i in range(frames):
            builder.words([*self._encode(f"<{item.timestamps_s[i]:.1f} seconds>"), begin])
            builder.media(item, token_ids[place], i * tokens, tokens, ((1, height, width), 1.0))
            builder.words([end])
        return place + 2 if wrapped else place + 1

    def _mismatch(self, places: list[m.embedding.MediaKind], media: Sequence[m.EncodedMedia]) -> str:
        def counted(kinds: Sequence[str]) -> str:
            return f"{list(kinds).count('image')} images and {list(kinds).count('video')} videos"

        marks = " and ".join(repr(mark) for mark in self._placeholders.marks.values())
        return (
            f"the prompt has places for {counted(places)} but there are {counted([item.kind for item in media])}, or "
            f"their order differs: put {marks} where each of them belongs and nowhere else"
        )


class _Builder:
    """A prompt in the making."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.spans: list[m.MediaSpan] = []
        self.grids: list[GridSpan] = []

    def words(self, ids: Sequence[int]) -> None:
        self.ids += ids

    def media(
        self, item: m.EncodedMedia, token_id: int, first: int, tokens: int, lies: tuple[tuple[int, int, int], float]
    ) -> None:
        grid, time_step = lies
        self.spans.append(m.MediaSpan(len(self.ids), tokens, item.ref, first))
        self.grids.append(GridSpan(len(self.ids), grid, time_step))
        self.ids += [token_id] * tokens
