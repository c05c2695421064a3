"""Requests and token streams: gateway (or any NATS client) <-> tokenizer <-> scheduler.

`GenerateRequest`, `Accepted`, `TextDeltas` and `Abort` are the public interface over NATS; they are plain JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shared.grammar import GrammarSpec
from shared.messages.embedding import MediaSource, MediaSpan
from shared.sampling import SamplingParams
from shared.wire import message

I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]

# `TokenBatch.finish` codes.
RUNNING, STOPPED, LENGTH, ABORTED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as data: `code` is one of `shared.errors`, `param` the request field at fault."""

    code: str
    message: str
    param: str | None = None


@message()
class ErrorReply:
    """Answer to any request-reply subject that failed."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A conversation to be rendered by the model's chat template."""

    messages: list[dict[str, Any]]
    """OpenAI chat messages: role, content (string or parts), name, tool_calls, tool_call_id. Parts may be images and
    videos: {"type": "image_url", "image_url": {url, detail}}, {"type": "video_url", "video_url": {url, fps,
    max_frames}}."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """OpenAI tools: {"type": "function", "function": {name, description, parameters, strict}}."""
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: str = ""
    """With `required`: the only function that may be called."""
    parallel_tool_calls: bool = True
    """False: at most one call per answer."""
    max_whitespace: int = 0
    """Of forced calls, where the request has no grammar of its own, as in `GrammarSpec`; `jump_forward` too."""
    jump_forward: bool = True
    separate_reasoning: bool = True
    """Put what the model thinks into `TextDelta.reasoning`, when the tokenizer knows the model's way to mark it."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """Leave the last (assistant) message open so that the model goes on with it."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@message(max_bytes=4 * 1024 * 1024)
class GenerateRequest:
    """One generation. Exactly one of `chat`, `text` and `input_ids` is given."""

    rid: str
    """Request id, chosen by the sender, unique among its running requests. 1 to 128 characters."""
    reply: str
    """Subject on which the sender receives `TextDeltas`."""
    chat: ChatInput | None = None
    text: str | None = None
    input_ids: list[int] | None = None
    media: list[MediaSource] | None = None
    """Images and videos of `text` or `input_ids`, one for each of the model's placeholders in it, in order. Those of a
    `chat` are in its messages."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stream: bool = True
    """False: one delta at the end instead of one per step."""
    return_logprob: bool = False
    top_logprobs_num: int = 0
    logprob_start_len: int = -1
    """First prompt position whose logprob is returned; -1 = none of the prompt."""
    echo: bool = False
    """Return the prompt's text in the first delta's `prompt.text`."""
    priority: int = 0
    """Higher runs earlier under `--schedule-policy priority`."""
    cache_salt: str = ""
    """Requests share cached prefixes only within the same salt."""
    timeout_s: float | None = None
    """Deadline for the whole generation, seconds from arrival at the scheduler."""
    grammar: GrammarSpec | None = None
    """What the generated text must look like."""


@message()
class Accepted:
    """Answer to `GenerateRequest`: the request is queued; deltas follow on its `reply` subject."""

    rid: str
    tokenizer_id: str
    scheduler_id: str
    prompt_tokens: int
    ledger: int = 0
    """The tokenizer's latest ledger: the request is in every later one until its last delta."""


@message()
class Abort:
    """Stop these requests; each still running gets a last delta with `finish_reason` "abort"."""

    rids: list[str]


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative at a position."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one token; null where there is none (the very first prompt token)."""

    token_id: int
    token: str
    """Text of the token alone; U+FFFD stands for bytes that are no character by themselves."""
    logprob: float | None
    bytes: list[int] = field(default_factory=list)
    top: list[TopLogprob] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """Facts about the prompt; rides on the first delta of a request."""

    prompt_tokens: int
    cached_tokens: int
    text: str | None = None
    """The prompt's text, when `echo` asked for it."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    image_tokens: int = 0
    """Of the prompt's tokens, those of images and videos."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What one tool call of an answer gained. The first one of a call has its id and name."""

    index: int
    """0, 1, 2, ... per answer."""
    id: str = ""
    name: str = ""
    arguments: str = ""
    """The next piece of the arguments' JSON text, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one request gained. The delta that has `finish_reason` is its last."""

    rid: str
    seq: int
    """0, 1, 2, ... per request; a gap means a lost message."""
    text: str = ""
    """Without tool calls and reasoning, which have fields of their own."""
    token_ids: list[int] = field(default_factory=list)
    """Ids that all text is made of so far; text may lag behind ids by what is held back."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: PromptInfo | None = None
    completion_tokens: int = 0
    """Tokens generated so far, this delta included."""
    finish_reason: FinishReason | None = None
    matched_stop: str | int | None = None
    """The stop string or token id that ended it."""
    error: ErrorInfo | None = None
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] | None = None
    """Null when no call gained anything, which is what most deltas are."""


@dataclass(frozen=True, slots=True)
class DeltaLedger:
    """All requests of one gateway that a tokenizer has, so that the gateway notices what was lost.

    It travels behind every delta that was sent before it: a request that should be in it and is not has had its last
    delta, and a number ahead of what has arrived means that a delta was lost.
    """

    tokenizer_id: str
    number: int
    """1, 2, 3, ... per tokenizer."""
    rids: list[str]
    seqs: list[int]
    """Number of the next delta of each."""


@message(max_bytes=8 * 1024 * 1024)
class TextDeltas:
    """All deltas of one step for one reply subject."""

    deltas: list[TextDelta]
    ledger: DeltaLedger | None = None
    """On gateways' subjects only, every few seconds."""


@message(max_bytes=4 * 1024 * 1024)
class Tokenize:
    """Request: text or chat to token ids."""

    text: str | None = None
    chat: ChatInput | None = None
    add_special_tokens: bool = True


@message(max_bytes=4 * 1024 * 1024)
class Tokens:
    """Answer to `Tokenize`."""

    token_ids: list[int]
    context_length: int


@message(max_bytes=4 * 1024 * 1024)
class Detokenize:
    """Request: token ids to text."""

    token_ids: list[int]
    skip_special_tokens: bool = False


@message(max_bytes=4 * 1024 * 1024)
class Text:
    """Answer to `Detokenize`."""

    text: str


@message(max_bytes=4 * 1024 * 1024)
class TokenizedRequest:
    """Tokenizer -> scheduler, answered by `Queued` or `ErrorReply`."""

    rid: str
    tokenizer_id: str
    handle: int
    """The tokenizer's number for this request; token batches name it instead of `rid`."""
    input_ids: I32
    sampling: SamplingParams
    """All defaults resolved; `max_new_tokens` set; logit_bias and stop ids checked against the vocabulary."""
    eos_token_ids: list[int] = field(default_factory=list)
    return_logprob: bool = False
    top_logprobs_num: int = 0
    logprob_start_len: int = -1
    priority: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None
    media: list[MediaSpan] | None = None
    """Images and videos in the prompt, in order; `input_ids` has the model's placeholder there."""
    positions: I32 | None = None
    """[3, prompt tokens] of time, height and width, for models whose positions have three dimensions, in prompts with
    media; a token behind the prompt has its index plus `position_delta` in all three."""
    position_delta: int = 0
    grammar: GrammarSpec | None = None


@message()
class Queued:
    """Answer to `TokenizedRequest`."""

    scheduler_id: str
    ledger: int = 0
    """The scheduler's latest ledger: the request is in every later one until its last word."""


@message(max_bytes=1024 * 1024)
class AbortHandles:
    """Tokenizer -> scheduler: end these requests (client gone, or stop string seen).

    Requests that already ended are ignored. With `silent` no last batch entry is sent back: the tokenizer has
    finished the stream itself.
    """

    tokenizer_id: str
    handles: list[int]
    silent: bool = False


@dataclass(frozen=True, slots=True)
class TokenError:
    """A request that ended with an error instead of tokens."""

    handle: int
    error: ErrorInfo


@message(max_bytes=8 * 1024 * 1024)
class TokenBatch:
    """Scheduler -> tokenizer: what one step gave to this tokenizer's requests.

    Dimension letters: N requests in the batch, T = counts.sum() tokens, K top logprobs, Q prompt positions.
    """

    scheduler_id: str
    handles: U32
    """[N]"""
    counts: I32
    """[N] new tokens of each request, in `tokens`; 0 is possible."""
    totals: I32
    """[N] tokens of each request so far, these included: a jump means that a batch was lost."""
    tokens: I32
    """[T]"""
    finish: U8
    """[N] RUNNING, STOPPED (an EOS or stop id, the last of the tokens), LENGTH or ABORTED."""
    cached_tokens: I32
    """[N] prompt tokens that came from the cache; -1 when told before."""
    logprobs: F32 | None = None
    """[T] NaN where not asked for."""
    top_ids: I32 | None = None
    """[T, K] padded with -1."""
    top_logprobs: F32 | None = None
    """[T, K]"""
    prompt_counts: I32 | None = None
    """[N] prompt logprobs that ride on this entry, in the order of positions."""
    prompt_logprobs: F32 | None = None
    """[Q] the first position of a prompt has NaN."""
    prompt_top_ids: I32 | None = None
    """[Q, K]"""
    prompt_top_logprobs: F32 | None = None
    """[Q, K]"""
    errors: list[TokenError] = field(default_factory=list)
    ledger: int = 0
    """0, or the number of the ledger (1, 2, 3, ... per scheduler) that this batch is: it then has no tokens and names
    all requests of the tokenizer that have not had their last word, with the tokens told so far."""
