"""SGLang's `/generate` as the language uses it, whatever carries it: HTTP (`endpoint.py`) or NATS (`nats.py`)."""

from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from rhizome.lang.backends.base import Backend, Completion, Delta, Usage
from rhizome.lang.chat_template import ChatTemplate, get_chat_template, get_chat_template_by_model_path
from rhizome.lang.choices import ChoicesDecision, ChoicesSamplingMethod, Scores
from rhizome.lang.conversation import Prompt
from rhizome.lang.errors import BackendError, Unsupported
from rhizome.lang.sampling import SamplingParams
from rhizome.lang.template_probe import probe_template

Body = dict[str, Any]
_SAMPLING = (
    "min_new_tokens", "n", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "ignore_eos", "regex", "json_schema", "ebnf", "structural_tag",
)  # fmt: skip
_LOGPROBS = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")
HEALING_TOKENS = 4
"""Tokens at the end of a prompt that may change when a choice follows."""


class NativeBackend(Backend, ABC):
    """A subclass says how a body gets to the server and back.

    Args:
        chat_template_name: of the table; by default the server's own template, or one by the model's name.
        prefix_hints: send shared prefixes ahead.
    """

    def __init__(self, chat_template_name: str | None, prefix_hints: bool) -> None:
        self.prefix_hints = prefix_hints
        self._template = get_chat_template(chat_template_name) if chat_template_name else None
        self._attempts: dict[asyncio.AbstractEventLoop, asyncio.Task[ChatTemplate]] = {}

    @abstractmethod
    async def call(self, body: Body) -> Any:
        """The answer to a body of /generate: an object, or a list for several prompts or samples."""

    @abstractmethod
    def events(self, body: Body) -> AsyncIterator[Any]:
        """The same in pieces, each an answer with the whole text so far."""

    @abstractmethod
    async def model_name(self) -> str:
        """As the server knows it."""

    @abstractmethod
    async def encode(self, source: str | list[dict[str, Any]], *, special: bool = True) -> list[int]:
        """Token ids of a text or of a conversation; `special`: with what the tokenizer adds to a text."""

    @abstractmethod
    async def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""

    async def render(self, messages: list[dict[str, Any]]) -> str | None:
        """The server's text of a conversation; None when it has no way to tell (SGLang's encodes only a text)."""
        try:
            ids = await self.encode(messages)
            bare = await self.encode("x", special=False)
            begun = await self.encode("x")
        except BackendError as fault:
            if fault.status in (400, 404, 422):
                return None
            raise
        opening = begun[: len(begun) - len(bare)]
        if opening and ids[: len(opening)] == opening:
            ids = ids[len(opening) :]  # the server puts it before every text
        return await self.decode(ids)

    async def chat_template(self) -> ChatTemplate:
        """The template; all that ask on one loop at a time share one attempt to find it, and its failure."""
        if self._template is None:
            loop = asyncio.get_running_loop()
            if loop not in self._attempts:
                attempt = self._attempts[loop] = loop.create_task(self._find_template())
                attempt.add_done_callback(lambda _: self._attempts.pop(loop))
            self._template = await asyncio.shield(self._attempts[loop])  # one who is cancelled leaves it to the others
        return self._template

    async def _find_template(self) -> ChatTemplate:
        name = await self.model_name()
        if await self.render([{"role": "user", "content": "x"}]) is not None:

            async def render(messages: list[dict[str, Any]]) -> str:
                return await self.render(messages) or ""

            try:
                found = await probe_template(render, name)
            except BackendError:  # a template that refuses some conversations
                found = None
            if found is not None:
                return found
        return get_chat_template_by_model_path(name)

    async def generate(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> list[Completion]:
        answer = await self.call(generate_body(prompt, params, with_tokens))
        return [_completion(a, with_tokens) for a in (answer if isinstance(answer, list) else [answer])]

    async def stream(
        self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False
    ) -> AsyncIterator[Delta]:
        if params.tools:
            raise Unsupported("gen(tools=...) is not streamed")
        seen, told, ended = 0, 0, False
        body = {**generate_body(prompt, params, with_tokens), "stream": True}
        async with aclosing(self.events(body)) as answers:  # type: ignore[type-var]
            async for answer in answers:
                _check(answer)
                whole = _completion(answer, with_tokens)
                tokens = whole.tokens[told:] if whole.tokens is not None else None
                ended = whole.meta.get("finish_reason") is not None
                yield Delta(
                    whole.text[seen:],
                    whole.meta,
                    whole.usage if ended else None,
                    whole.finish if ended else None,
                    tokens,
                )
                seen, told = len(whole.text), told + len(tokens or ())
        if not ended:
            raise BackendError("the answer broke off")

    async def cache_prefix(self, prompt: Prompt) -> None:
        await self.call(_prompt_only(prompt))

    async def select(
        self, prompt: Prompt, choices: Sequence[str], method: ChoicesSamplingMethod
    ) -> tuple[ChoicesDecision, Usage]:
        """Log probabilities of each choice's tokens after the prompt.

        A choice may change how the end of the prompt is cut into tokens; it is scored from its first token that the
        prompt alone does not have.
        """
        start, seen = 0, []
        if prompt.text:
            seen = [await self.call(_prompt_only(prompt))]
            start = max(seen[0]["meta_info"]["prompt_tokens"] - HEALING_TOKENS, 0)
        texts = [prompt.text + choice for choice in choices]
        if prompt.text:
            texts.append(prompt.text)
        answers = await self._score({**_media(prompt, len(texts)), "text": texts}, start)
        seen += answers
        if start and any(_differs_at_once(a, answers[-1], start) for a in answers[:-1]):
            answers = await self._score({**_media(prompt, len(texts)), "text": texts}, 0)
            seen += answers
        alone = _positions(answers[-1]) if prompt.text else {}
        scored = [_after(alone, _positions(answer)) for answer in answers[: len(choices)]]
        unconditional = None
        if method.requires_unconditional_logprobs:
            unconditional = await self._unconditional([[entry[1] for entry in entries] for entries in scored])
        metas = [answer["meta_info"] for answer in seen]
        usage = Usage(sum(m["prompt_tokens"] for m in metas), 0, sum(m.get("cached_tokens", 0) for m in metas))
        return method(Scores(list(choices), scored, unconditional)), usage

    async def _score(self, body: Body, start: int) -> list[Any]:
        params = {"max_new_tokens": 0, "temperature": 0}
        asked = {
            "sampling_params": params, "return_logprob": True, "return_text_in_logprobs": True,
            "logprob_start_len": start,
        }  # fmt: skip
        answer = await self.call({**body, **asked})
        return answer if isinstance(answer, list) else [answer]

    async def _unconditional(self, ids: list[list[int]]) -> list[list[list[Any]]]:
        answers = await self._score({"input_ids": ids}, 0)
        return [[entry for _, entry in sorted(_positions(answer).items())] for answer in answers]


def generate_body(prompt: Prompt, params: SamplingParams, with_tokens: bool) -> Body:
    """Body of /generate for resolved parameters; fields that are not given are left out."""
    sampling: Body = {"max_new_tokens": params.limit, "temperature": params.temperature}
    if params.stops:
        sampling["stop"] = list(params.stops)
    if params.stop_token_ids:
        sampling["stop_token_ids"] = list(params.stop_token_ids)
    sampling |= {name: v for name in _SAMPLING if (v := getattr(params, name)) is not None}
    if params.seed is not None:
        sampling["sampling_seed"] = params.seed
    body: Body = {"text": prompt.text, "sampling_params": sampling, "rid": uuid.uuid4().hex, **_media(prompt)}
    body |= {name: v for name in _LOGPROBS if (v := getattr(params, name)) is not None}
    if with_tokens:
        body |= {"return_logprob": True, "return_text_in_logprobs": True}
    return body


def _prompt_only(prompt: Prompt) -> Body:
    return {"text": prompt.text, "sampling_params": {"max_new_tokens": 0, "temperature": 0}, **_media(prompt)}


def _media(prompt: Prompt, copies: int = 0) -> Body:
    """`image_data`: one picture as it is, several as a list; for a batch once per prompt."""
    urls = [image.url for image in prompt.images]
    if not urls:
        return {}
    one: Any = urls[0] if len(urls) == 1 else urls
    return {"image_data": [one] * copies if copies else one}


def _check(answer: Any) -> None:
    """Raises:
    BackendError: an error took the place of an answer.
    """
    if not isinstance(answer, dict) or "text" not in answer:
        error = answer.get("error", answer) if isinstance(answer, dict) else answer
        raise BackendError(str(error.get("message", error) if isinstance(error, dict) else error))


def _completion(answer: Any, with_tokens: bool) -> Completion:
    _check(answer)
    meta = answer["meta_info"]
    reason = meta.get("finish_reason") or {}
    if reason.get("type") == "abort":
        raise BackendError(f"the server stopped the generation: {reason.get('message', 'aborted')}")
    usage = Usage(meta.get("prompt_tokens", 0), meta.get("completion_tokens", 0), meta.get("cached_tokens", 0))
    entries = meta.get("output_token_logprobs") if with_tokens else None
    tokens = None if entries is None else [str(entry[2]) for entry in entries]
    return Completion(answer["text"], meta, usage, "length" if reason.get("type") == "length" else "stop", tokens)


def _positions(answer: Any) -> dict[int, list[Any]]:
    """Log probability entries of the prompt by position; the last entry is that of the last token."""
    entries = answer["meta_info"]["input_token_logprobs"]
    first = answer["meta_info"]["prompt_tokens"] - len(entries)
    return {first + i: list(entry) for i, entry in enumerate(entries)}


def _differs_at_once(answer: Any, alone: Any, start: int) -> bool:
    """Whether the first scored position is already another token: the change may begin before it."""
    a, b = _positions(answer), _positions(alone)
    return start in b and a.get(start, [0, -1])[1] != b[start][1]


def _after(alone: dict[int, list[Any]], full: dict[int, list[Any]]) -> list[list[Any]]:
    """Entries from the first token that the prompt alone does not have at its place."""
    for position in sorted(full):
        if position not in alone or alone[position][1] != full[position][1]:
            return [full[p] for p in sorted(full) if p >= position]
    return []
