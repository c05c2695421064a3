"""A Rhizome or SGLang server over HTTP: `RuntimeEndpoint`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from rhizome.lang.backends.base import Completion, Usage
from rhizome.lang.backends.http import MAX_CONNECTIONS, HttpClient
from rhizome.lang.backends.native import Body, NativeBackend
from rhizome.lang.chat_messages import as_messages, message_of
from rhizome.lang.conversation import Prompt
from rhizome.lang.errors import Unsupported
from rhizome.lang.loops import background_loop, wait_on
from rhizome.lang.sampling import SamplingParams

_CHAT_FIELDS = (
    "tool_choice", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "ignore_eos", "seed",
)  # fmt: skip


class RuntimeEndpoint(NativeBackend):
    """Args:
    base_url: for example http://127.0.0.1:30000
    api_key: sent as a bearer token.
    prefix_hints: have shared prefixes of forks and batches computed first.
    timeout_s: longest wait for one answer; none by default.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        chat_template_name: str | None = None,
        *,
        prefix_hints: bool = True,
        max_connections: int = MAX_CONNECTIONS,
        max_retries: int = 4,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(chat_template_name, prefix_hints)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = HttpClient(
            base_url, headers, max_connections=max_connections, max_retries=max_retries, timeout_s=timeout_s
        )
        self._model: str | None = None

    @property
    def base_url(self) -> str:
        return self._http.base_url

    @property
    def retries(self) -> int:
        """Calls that were made again because the server was busy or away."""
        return self._http.retries

    async def call(self, body: Body) -> Any:
        return await self._http.json("POST", "/generate", body)

    def events(self, body: Body) -> AsyncIterator[Any]:
        return self._http.events("/generate", body)

    async def model_name(self) -> str:
        if self._model is None:
            info = await self._http.json("GET", "/get_model_info")
            self._model = str(info["model_path"])
        return self._model

    def get_model_name(self) -> str:
        """The served model, for a thread."""
        return wait_on(background_loop(), self.model_name())

    async def encode(self, source: str | list[dict[str, Any]], *, special: bool = True) -> list[int]:
        if isinstance(source, str):
            body: Body = {"prompt": source, "add_special_tokens": special}
        else:
            body = {"messages": source, "add_generation_prompt": False}
        answer = await self._http.json("POST", "/tokenize", body)
        return list(answer["tokens"])

    async def decode(self, ids: list[int]) -> str:
        answer = await self._http.json("POST", "/detokenize", {"tokens": ids, "skip_special_tokens": False})
        return str(answer["text"])

    async def generate(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> list[Completion]:
        if params.tools:
            return [await self._with_tools(prompt, params)]
        return await super().generate(prompt, params, with_tokens=with_tokens)

    async def flush_cache(self) -> Any:
        return await self._http.json("POST", "/flush_cache", {})

    async def get_server_info(self) -> Any:
        return await self._http.json("GET", "/get_server_info")

    async def aclose(self) -> None:
        await self._http.close()

    async def _with_tools(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """A turn that may call tools goes through the chat route, which knows the model's form of calls."""
        if prompt.turn_text.strip():
            raise Unsupported("gen(tools=...) must come first in the assistant's turn")
        if params.grammar or (params.n or 1) > 1:
            raise Unsupported("gen(tools=...) takes no grammar and no n")
        for name in ("return_logprob", "stop_regex"):
            if getattr(params, name):
                raise Unsupported(f"gen(tools=...) takes no {name}")
        body: Body = {
            "messages": as_messages(prompt), "tools": list(params.tools or ()), "max_tokens": params.limit,
            "temperature": params.temperature,
        }  # fmt: skip
        body |= {name: value for name in _CHAT_FIELDS if (value := getattr(params, name)) is not None}
        if params.min_new_tokens is not None:
            body["min_tokens"] = params.min_new_tokens
        if params.stops:
            body["stop"] = list(params.stops)
        if params.stop_token_ids:
            body["stop_token_ids"] = list(params.stop_token_ids)
        answer = await self._http.json("POST", "/v1/chat/completions", body)
        text, meta = message_of(answer["choices"][0])
        used = answer.get("usage") or {}
        usage = Usage(used.get("prompt_tokens", 0), used.get("completion_tokens", 0))
        return Completion(text, meta, usage, "length" if meta["finish_reason"]["type"] == "length" else "stop")
