"""The prompt of a request: rendered, encoded and checked, off the loop when it is long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.tokenizer import admission
from services.tokenizer.chat_messages import text_size
from services.tokenizer.encoder import INLINE_UNITS, Encoder
from services.tokenizer.media.expansion import MediaPrompt
from services.tokenizer.model import Model
from shared import messages as m
from shared.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids that go to the model, and the text they stand for when it was given or asked for."""

    token_ids: list[int]
    text: str | None
    media: MediaPrompt | None = None
    """What its images and videos add; `token_ids` has a token for each of their embeddings then"""


class PromptBuilder:
    """Stateless apart from the thread pool."""

    def __init__(self, model: Model, encoder: Encoder) -> None:
        self._model, self._encoder = model, encoder

    async def build(self, request: m.GenerateRequest, *, with_media: bool = False) -> Prompt:
        """The prompt of a request that has exactly one input, with one placeholder for each image and video.

        Args:
            with_media: there are some.

        Raises:
            InvalidRequest, ContextLengthExceeded, Overloaded.
        """
        if request.input_ids is None:
            prompt = await self._encoded(request.chat, request.text, add_special_tokens=True, with_media=with_media)
        else:
            prompt = await self._given(request.input_ids, with_text=request.echo)
        self._check(prompt, admission.prompt_param(request))
        return prompt

    def with_media(self, prompt: Prompt, media: list[m.EncodedMedia], param: str) -> Prompt:
        """The prompt with a token for each embedding of its images and videos.

        Raises:
            InvalidRequest: they do not fit its placeholders.
            ContextLengthExceeded: it becomes too long.
        """
        assert self._model.expansion is not None
        expanded = self._model.expansion.expand(prompt.token_ids, media, param)
        prompt = Prompt(expanded.token_ids, prompt.text, expanded)
        self._check(prompt, param)
        return prompt

    def _check(self, prompt: Prompt, param: str) -> None:
        ahead = 0 if prompt.media is None else max(0, prompt.media.position_delta)
        admission.check_length(len(prompt.token_ids) + ahead, self._model.context_length, param)
        admission.check_ids(prompt.token_ids, self._model.vocabulary.size, param)

    async def tokenize(self, request: m.Tokenize) -> list[int]:
        """Ids of a text or of a rendered conversation, however many they are.

        Raises:
            InvalidRequest, ContextLengthExceeded, Overloaded.
        """
        if (request.text is None) == (request.chat is None):
            raise InvalidRequest("give exactly one of text and chat")
        prompt = await self._encoded(request.chat, request.text, add_special_tokens=request.add_special_tokens)
        return prompt.token_ids

    async def detokenize(self, request: m.Detokenize) -> str:
        """Text of ids, decoded in one shot.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        admission.check_ids(request.token_ids, self._model.vocabulary.size, "token_ids")
        return await self._encoder.run(
            len(request.token_ids),
            lambda: self._model.vocabulary.decode(request.token_ids, skip_special_tokens=request.skip_special_tokens),
        )

    async def _encoded(
        self, chat: m.ChatInput | None, text: str | None, *, add_special_tokens: bool, with_media: bool = False
    ) -> Prompt:
        vocabulary, answers, expansion = self._model.vocabulary, self._model.answers, self._model.expansion

        def encode(text: str, *, add_special_tokens: bool) -> Prompt:
            spelled = text if expansion is None or not with_media else expansion.spelled(text)
            return Prompt(vocabulary.encode(spelled, add_special_tokens=add_special_tokens), text)

        work: Callable[[], Prompt]
        if chat is not None:
            # Templates print the special tokens themselves.
            def work() -> Prompt:
                return encode(answers.render(chat), add_special_tokens=False)

            size = text_size([chat.messages, chat.tools, chat.template_kwargs], INLINE_UNITS)
            return await self._encoder.run(size, work)
        assert text is not None, "checked by the caller"
        admission.check_text(text, self._model.max_prompt_chars, "prompt")
        return await self._encoder.run(len(text), lambda: encode(text, add_special_tokens=add_special_tokens))

    async def _given(self, token_ids: list[int], *, with_text: bool) -> Prompt:
        admission.check_length(len(token_ids), self._model.context_length, "input_ids")
        admission.check_ids(token_ids, self._model.vocabulary.size, "input_ids")
        if not with_text:
            return Prompt(token_ids, None)
        decode = self._model.vocabulary.decode
        text = await self._encoder.run(len(token_ids), lambda: decode(token_ids, skip_special_tokens=False))
        return Prompt(token_ids, text)
