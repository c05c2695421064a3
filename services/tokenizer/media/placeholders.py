"""How a model's prompts mark the places of images and videos. Read once, from the model's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import ConfigError
from shared.media_config import MediaConfig
from shared.messages.embedding import MediaKind
from shared.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Placeholders:
    """Of one model. Immutable."""

    ids: dict[MediaKind, int]
    """Token that stands for each kind; a kind that is not there is one that the model does not take"""
    texts: dict[MediaKind, str]
    """What a chat template would print: the token and what is around it"""
    marks: dict[MediaKind, str]
    """The token alone, as it is written"""
    written: str
    """What stands for an image in a text"""
    known: str
    """The same as the tokenizer knows it: another token where it has none of that name"""


def placeholders_of(config: MediaConfig, vocabulary: Vocabulary) -> Placeholders:
    """The placeholders of a model.

    Raises:
        ConfigError: the tokenizer does not have them.
    """

    def text_of(token_id: int | None) -> str:
        if token_id is None:
            return ""
        text = vocabulary.tokenizer.id_to_token(token_id)
        if text is None:
            raise ConfigError(f"config.json names token {token_id} for images or videos, which the tokenizer lacks")
        return text

    begin, end = text_of(config.vision_start_token_id), text_of(config.vision_end_token_id)
    ids: dict[MediaKind, int] = {"image": config.image_token_id}
    if config.video_token_id is not None:
        ids["video"] = config.video_token_id
    known = text_of(config.image_token_id)
    written = config.placeholder or known
    marks = {kind: written if kind == "image" else text_of(token_id) for kind, token_id in ids.items()}
    texts = {kind: f"{begin}{mark}{end}" for kind, mark in marks.items()}
    return Placeholders(ids, texts, marks, written, known)
