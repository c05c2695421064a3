"""Answers as dataclasses: orjson writes them, /openapi.json describes them. Nothing else shapes a JSON answer.

Stream chunks of the OpenAI routes are the exception: `sse.py` writes those as bytes, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from shared.messages import SchedulerInfo
from shared.messages.control import State

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class PromptTokensDetails:
    """Where prompt tokens came from."""

    cached_tokens: int
    image_tokens: int = 0
    """Of the prompt's tokens, those of images and videos."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


@dataclass(frozen=True, slots=True)
class ChatTopLogprob:
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int] | None


@dataclass(frozen=True, slots=True)
class ChatTokenLogprob:
    """One generated token."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[ChatTopLogprob]


@dataclass(frozen=True, slots=True)
class ChatLogprobs:
    """Log probabilities of a chat choice."""

    content: list[ChatTokenLogprob]
    refusal: None = None


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """What the model said."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """Which function, and the JSON text of its arguments as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model wants made; the answer to it names its id."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True)
class ExtendedMessage:
    """What the model said, thought and wants called, where there is more than text."""

    content: str | None
    reasoning_content: str | None
    tool_calls: list[ToolCall] | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One of n answers."""

    index: int
    message: AssistantMessage | ExtendedMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """Answer to /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: None = None


@dataclass(frozen=True, slots=True)
class CompletionLogprobs:
    """Log probabilities of a completion, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where the token starts in the choice's text, in characters."""


@dataclass(frozen=True, slots=True)
class CompletionChoice:
    """One of n answers to one of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """Answer to /v1/completions."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: None = None


@dataclass(frozen=True, slots=True)
class StopFinish:
    """A stop string, a stop id or end-of-sequence; `matched` says which."""

    matched: str | int | None
    type: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class LengthFinish:
    """As many tokens as asked for, or as fit."""

    length: int
    type: Literal["length"] = "length"


@dataclass(frozen=True, slots=True)
class AbortFinish:
    """Stopped from outside."""

    message: str
    type: Literal["abort"] = "abort"


LogprobEntry = list[float | int | str | None]
"""[log probability, token id, text or null]."""


@dataclass(frozen=True, slots=True)
class MetaInfo:
    """Facts about one generation of /generate; lists of log probabilities are null unless asked for."""

    id: str
    finish_reason: StopFinish | LengthFinish | AbortFinish | None
    """Null while it runs."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    image_tokens: int
    """Of the prompt's tokens, those of images and videos."""
    e2e_latency: float
    """Seconds since the request arrived."""
    input_token_logprobs: list[LogprobEntry] | None = None
    output_token_logprobs: list[LogprobEntry] | None = None
    input_top_logprobs: list[list[LogprobEntry] | None] | None = None
    output_top_logprobs: list[list[LogprobEntry] | None] | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """Answer to /generate for one prompt; a batch is a list of them."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | None = None
    """Place in a streamed batch; null elsewhere."""


@dataclass(frozen=True, slots=True)
class Model:
    """One served model."""

    id: str
    created: int
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "rhizome"


@dataclass(frozen=True, slots=True)
class ModelList:
    """Answer to /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


@dataclass(frozen=True, slots=True)
class TokenizeResult:
    """Answer to /tokenize: lists of lists for a list of prompts."""

    tokens: list[int] | list[list[int]]
    count: int | list[int]
    max_model_len: int


@dataclass(frozen=True, slots=True)
class DetokenizeResult:
    """Answer to /detokenize."""

    text: str | list[str]


@dataclass(frozen=True, slots=True)
class Health:
    """The process answers."""

    status: Literal["ok"] = "ok"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a request would be served now, and if not, what is missing."""

    status: Literal["ready", "not ready"]
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Instance:
    """One service instance, from its heartbeat."""

    service: str
    name: str
    id: str
    state: State
    host: str
    pid: int
    started_s: float


@dataclass(frozen=True, slots=True)
class GatewayInfo:
    """This gateway's own limits and load."""

    id: str
    in_flight: int
    max_inflight_requests: int
    max_prompts_per_request: int
    max_n: int
    max_body_bytes: int
    request_timeout_s: float


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Answer to /server_info."""

    version: str
    models: list[Model]
    services: list[Instance]
    schedulers: list[SchedulerInfo]
    gateway: GatewayInfo


@dataclass(frozen=True, slots=True)
class ServedModelInfo:
    """Answer to /get_model_info, SGLang's way to ask what is served."""

    model_path: str
    """Served model name."""
    tokenizer_path: str
    is_generation: bool
    max_model_len: int


@dataclass(frozen=True, slots=True)
class CacheFlush:
    """Answer to /flush_cache."""

    released_pages: int
    held_pages: int
    """Pages that running requests still use."""
    schedulers: dict[str, Any]
    """The same per scheduler id."""
