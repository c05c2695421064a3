"""All that the service needs of one model, loaded from its directory at start-up."""

from __future__ import annotations

from dataclasses import dataclass

from services.tokenizer.answer_plan import Answers
from services.tokenizer.config import PROMPT_CHARS_PER_TOKEN, TokenizerConfig
from services.tokenizer.detokenizer import Detokenizers
from services.tokenizer.media.expansion import Expansion
from services.tokenizer.media.placeholders import Placeholders, placeholders_of
from services.tokenizer.template_files import load_chat_templates
from shared.media_config import MediaConfig, load_media_config
from shared.model_config import load_model_config
from shared.sampling import NEUTRAL, SamplingParams
from shared.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True, slots=True)
class Model:
    """Immutable, lives as long as the process."""

    name: str
    vocabulary: Vocabulary
    detokenizers: Detokenizers
    answers: Answers
    context_length: int
    max_prompt_chars: int
    eos_token_ids: list[int]
    sampling_defaults: SamplingParams
    expansion: Expansion | None
    """What puts images and videos into prompts; None: the model takes text only."""


def load_model(config: TokenizerConfig) -> Model:
    """Read the model directory named by the configuration.

    Raises:
        ConfigError: a file is missing or wrong.
    """
    hyper = load_model_config(config.model_path, config.context_length)
    vocabulary = load_vocabulary(config.model_path, hyper.vocab_size)
    max_chars = config.max_prompt_chars or PROMPT_CHARS_PER_TOKEN * hyper.context_length
    media = load_media_config(config.model_path)
    placeholders = None if media is None else placeholders_of(media, vocabulary)
    templates = load_chat_templates(
        config.model_path, config.chat_template, vocabulary.special_tokens, max_chars, placeholders
    )
    eos = {*hyper.eos_token_ids, vocabulary.eos_token_id}
    return Model(
        name=config.model_name,
        vocabulary=vocabulary,
        detokenizers=Detokenizers(vocabulary),
        answers=Answers(vocabulary, templates, config.tool_call_parser, config.reasoning_parser),
        context_length=hyper.context_length,
        max_prompt_chars=max_chars,
        eos_token_ids=sorted(i for i in eos if i is not None and 0 <= i < hyper.vocab_size),
        sampling_defaults=hyper.sampling_defaults if config.sampling_defaults == "model" else NEUTRAL,
        expansion=_expansion(media, placeholders, vocabulary),
    )


def _expansion(
    media: MediaConfig | None, placeholders: Placeholders | None, vocabulary: Vocabulary
) -> Expansion | None:
    if media is None or placeholders is None:
        return None
    return Expansion(media, placeholders, lambda text: vocabulary.encode(text, add_special_tokens=False))
