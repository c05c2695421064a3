"""Any OpenAI-compatible API, chat or completion, through the official client.

The `openai` dialect is what every such API takes. The `rhizome` dialect adds what Rhizome, SGLang and vLLM take on the
same routes: grammars, top_k, min_p, and going on with an assistant's begun answer.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from typing import Any

import openai

from rhizome.lang.backends.base import Backend, Completion, Delta, Usage
from rhizome.lang.chat_messages import as_messages, message_of
from rhizome.lang.chat_template import ChatTemplate, get_chat_template, get_chat_template_by_model_path
from rhizome.lang.choices import ChoicesDecision, ChoicesSamplingMethod, Scores
from rhizome.lang.conversation import Prompt
from rhizome.lang.errors import BackendError, LanguageError, Unsupported
from rhizome.lang.loops import PerLoop
from rhizome.lang.sampling import SamplingParams

INSTRUCT_MODELS = ("gpt-3.5-turbo-instruct",)
_EXTRA = (
    "top_k", "min_p", "repetition_penalty", "ignore_eos", "stop_token_ids", "regex", "ebnf", "structural_tag",
)  # fmt: skip
_OFF = (None, (), -1, 0)
"""Values of these that ask for nothing; False and 0.0 are equal to 0."""
_DIALECTS = ("openai", "rhizome")


class OpenAI(Backend):
    """Args:
    model_name: as the API knows it.
    is_chat_model: chat route or completion route; by default chat, but for OpenAI's instruct models.
    dialect: "openai" or "rhizome", see the module.
    prefill: whether a chat API goes on with a last message of the assistant; by default what the dialect has.
    max_retries: of the client, for failures that may pass.
    tells_tokens: ask for log probabilities where speculation must count tokens; False for APIs that refuse them
        (lengths are then estimated from the usage).
    client_arguments: for `openai.AsyncOpenAI`: base_url, api_key, ...
    """

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: ChatTemplate | str | None = None,
        *,
        dialect: str = "openai",
        prefill: bool | None = None,
        is_azure: bool = False,
        max_retries: int = 3,
        tells_tokens: bool = True,
        **client_arguments: Any,
    ) -> None:
        if dialect not in _DIALECTS:
            raise LanguageError(f"dialect {dialect!r}: use one of {', '.join(_DIALECTS)}")
        self.model_name, self._extra = model_name, dialect == "rhizome"
        self.is_chat_model = model_name not in INSTRUCT_MODELS if is_chat_model is None else is_chat_model
        self.can_prefill = not self.is_chat_model or (self._extra if prefill is None else prefill)
        if isinstance(chat_template, str):
            chat_template = get_chat_template(chat_template)
        self._template = chat_template
        if not is_azure and "api_key" not in client_arguments and not os.environ.get("OPENAI_API_KEY"):
            raise LanguageError("no API key: set OPENAI_API_KEY or give api_key=")
        make = openai.AsyncAzureOpenAI if is_azure else openai.AsyncOpenAI
        self._has_base_url = "base_url" in client_arguments
        self._tells_tokens = tells_tokens
        self._clients = PerLoop(partial(_client, make, {"max_retries": max_retries, **client_arguments}))
        self.token_usage = TokenUsage()

    async def chat_template(self) -> ChatTemplate:
        if self._template is not None:
            return self._template
        return get_chat_template("messages") if self.is_chat_model else get_chat_template_by_model_path(self.model_name)

    async def generate(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> list[Completion]:
        client = await self._clients.get()
        body = self._body(prompt, params, with_tokens)
        try:
            if self.is_chat_model:
                answer: Any = await client.chat.completions.create(**body)
            else:
                answer = await client.completions.create(**body)
        except openai.OpenAIError as fault:
            raise _refused(fault) from fault
        usage = self._count(answer.usage)
        out = []
        for i, choice in enumerate(answer.choices):
            text, meta, tokens = self._choice(choice)
            own = usage if i == 0 else Usage()
            meta |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
                     "cached_tokens": usage.cached_tokens}  # fmt: skip
            out.append(Completion(text, meta, own, "length" if choice.finish_reason == "length" else "stop", tokens))
        return out

    async def stream(
        self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False
    ) -> AsyncIterator[Delta]:
        client = await self._clients.get()
        body = {**self._body(prompt, params, with_tokens), "stream": True, "stream_options": {"include_usage": True}}
        finish, usage = None, Usage()
        try:
            if self.is_chat_model:
                source: Any = await client.chat.completions.create(**body)
            else:
                source = await client.completions.create(**body)
            async with source as chunks:
                async for chunk in chunks:
                    if chunk.usage is not None:
                        usage = self._count(chunk.usage)
                    for choice in chunk.choices:
                        finish = choice.finish_reason or finish
                        text = (choice.delta.content if self.is_chat_model else choice.text) or ""
                        yield Delta(text, tokens=_tokens(choice.logprobs, self.is_chat_model))
        except openai.OpenAIError as fault:
            raise _refused(fault) from fault
        if finish is None:
            raise BackendError("the answer broke off")
        meta = {"finish_reason": {"type": finish}, "completion_tokens": usage.completion_tokens}
        yield Delta("", meta, usage, "length" if finish == "length" else "stop", [])

    async def select(
        self, prompt: Prompt, choices: Sequence[str], method: ChoicesSamplingMethod
    ) -> tuple[ChoicesDecision, Usage]:
        """Completion models: by the log probabilities of echoed prompts. Chat models: by a grammar of the choices."""
        if self.is_chat_model:
            return await self._select_by_grammar(prompt, choices)
        scored, usage = await self._echo([prompt.text + choice for choice in choices], len(prompt.text))
        alone = None
        if method.requires_unconditional_logprobs:
            alone, more = await self._echo(list(choices), 0)
            usage = Usage(usage.prompt_tokens + more.prompt_tokens, usage.completion_tokens + more.completion_tokens)
            pairs = list(zip(scored, alone, strict=True))
            if any(len(a) != len(b) for a, b in pairs):
                raise Unsupported("this API cuts a choice into other tokens without the prompt: use another method")
        return method(Scores(list(choices), scored, alone)), usage

    async def aclose(self) -> None:
        await self._clients.close()

    def _body(self, prompt: Prompt, params: SamplingParams, with_tokens: bool) -> dict[str, Any]:
        extra = self._extra_body(params)
        with_tokens = with_tokens and self._tells_tokens
        body: dict[str, Any] = {"model": self.model_name, "temperature": params.temperature}
        for name in ("top_p", "frequency_penalty", "presence_penalty", "seed", "n"):
            if (value := getattr(params, name)) is not None:
                body[name] = value
        if params.stops:
            body["stop"] = list(params.stops)
        if self.is_chat_model:
            body["messages"] = as_messages(prompt, prefill=self.can_prefill)
            # OpenAI's newer models refuse max_tokens; other servers know only that.
            body["max_completion_tokens" if self._is_openai() else "max_tokens"] = params.limit
            if body["messages"][-1]["role"] == "assistant" and self._extra:
                extra |= {"continue_final_message": True, "add_generation_prompt": False}
            if params.tools:
                body["tools"] = list(params.tools)
                if params.tool_choice is not None:
                    body["tool_choice"] = params.tool_choice
            if params.json_schema is not None:
                body["response_format"] = _json_format(params.json_schema)
            if with_tokens or params.return_logprob:
                body["logprobs"] = True
                if params.top_logprobs_num:
                    body["top_logprobs"] = params.top_logprobs_num
        else:
            if prompt.images:
                raise Unsupported("completion models take no pictures")
            if params.tools:
                raise Unsupported("completion models call no tools: use a chat model")
            body |= {"prompt": prompt.text, "max_tokens": params.limit}
            if params.json_schema is not None:
                if not self._extra:
                    raise Unsupported("this completion API has no grammars: dialect='rhizome' for servers that have")
                extra["response_format"] = _json_format(params.json_schema)
            if with_tokens or params.return_logprob:
                body["logprobs"] = params.top_logprobs_num or 0
        if extra:
            body["extra_body"] = extra
        return body

    def _extra_body(self, params: SamplingParams) -> dict[str, Any]:
        given = {name: v for name in _EXTRA if (v := getattr(params, name)) not in _OFF}
        if params.min_new_tokens:
            given["min_tokens"] = params.min_new_tokens
        if given and not self._extra:
            raise Unsupported(
                f"the OpenAI API has no {next(iter(given))}: give OpenAI(..., dialect='rhizome') for servers that have"
            )
        return given

    def _is_openai(self) -> bool:
        return not self._extra and not self._has_base_url and "OPENAI_BASE_URL" not in os.environ

    def _choice(self, choice: Any) -> tuple[str, dict[str, Any], list[str] | None]:
        tokens = _tokens(choice.logprobs, self.is_chat_model)
        if self.is_chat_model:
            text, meta = message_of(choice.model_dump())
        else:
            text, meta = choice.text, {"finish_reason": {"type": choice.finish_reason}}
        if choice.logprobs is not None:
            meta["logprobs"] = choice.logprobs.model_dump()
        return text, meta, tokens

    def _count(self, usage: Any) -> Usage:
        if usage is None:
            return Usage()
        details = getattr(usage, "prompt_tokens_details", None)
        out = Usage(usage.prompt_tokens, usage.completion_tokens, (getattr(details, "cached_tokens", 0) or 0))
        self.token_usage.prompt_tokens += out.prompt_tokens
        self.token_usage.completion_tokens += out.completion_tokens
        return out

    async def _echo(self, texts: list[str], skip: int) -> tuple[list[list[list[Any]]], Usage]:
        """Log probability entries of the tokens that begin at or after `skip` characters."""
        client = await self._clients.get()
        try:
            answer = await client.completions.create(
                model=self.model_name, prompt=texts, max_tokens=0 if self._extra else 1, echo=True, logprobs=0,
                temperature=0,
            )  # fmt: skip
        except openai.OpenAIError as fault:
            raise _refused(fault) from fault
        usage = self._count(answer.usage)
        out = []
        for text, choice in zip(texts, answer.choices, strict=True):
            probs = choice.logprobs
            rows = zip(probs.token_logprobs, probs.tokens, probs.text_offset, strict=True)
            out.append([[p, None, token] for p, token, at in rows if at + len(token) > skip and at < len(text)])
        return out, usage

    async def _select_by_grammar(self, prompt: Prompt, choices: Sequence[str]) -> tuple[ChoicesDecision, Usage]:
        if not self._extra:
            raise Unsupported(
                "a chat API tells no log probabilities of given texts: use a completion model, RuntimeEndpoint, or "
                "dialect='rhizome' for a server with grammars"
            )
        client = await self._clients.get()
        messages = as_messages(prompt, prefill=self.can_prefill)
        extra: dict[str, Any] = {"guided_choice": list(choices)}
        if messages[-1]["role"] == "assistant":
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        try:
            answer = await client.chat.completions.create(
                model=self.model_name, messages=messages, temperature=0, max_tokens=256, extra_body=extra
            )
        except openai.OpenAIError as fault:
            raise _refused(fault) from fault
        text = answer.choices[0].message.content or ""
        if text not in choices:
            raise BackendError(f"the server answered {text[:60]!r} for a choice: it knows no guided_choice")
        return ChoicesDecision(text), self._count(answer.usage)


class TokenUsage:
    """Tokens that a backend has paid for, all programs together."""

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0

    def __repr__(self) -> str:
        return f"TokenUsage(prompt_tokens={self.prompt_tokens}, completion_tokens={self.completion_tokens})"


async def _client(make: Any, arguments: dict[str, Any]) -> AsyncGenerator[Any, None]:
    async with make(**arguments) as client:
        yield client


def _tokens(logprobs: Any, chat: bool) -> list[str] | None:
    """The text in tokens, from logprobs; None where there are none."""
    if logprobs is None:
        return None
    if chat:
        return None if logprobs.content is None else [entry.token for entry in logprobs.content]
    return None if logprobs.tokens is None else list(logprobs.tokens)


def _json_format(schema: str) -> dict[str, Any]:
    import json

    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(schema)}}


def _refused(fault: openai.OpenAIError) -> BackendError:
    return BackendError(str(fault), getattr(fault, "status_code", 0) or 0)
