"""Bodies of the OpenAI routes: what is accepted is exactly what stands here.

`shared.schema` parses them and generates /openapi.json from them. Every optional field may be null. Unknown fields
are ignored, as clients send many; those that would change the result are refused first (`refused.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from services.gateway.grammar_bodies import GRAMMAR_HELP, JsonSchema, ResponseFormat, StructuredOutputs
from services.gateway.tool_bodies import NamedTool, Tool

Role = Literal["system", "developer", "user", "assistant", "tool"]

HELP = {
    "model": "Served model name; may be left out.",
    "max_tokens": "Most tokens to generate. 0 = compute the prompt only.",
    "max_completion_tokens": "Newer name of max_tokens.",
    "temperature": "0 = greedy. 0 to 100.",
    "top_p": "Nucleus mass, over 0 and up to 1.",
    "top_k": "Sample from the k most likely tokens; -1 or 0 = all.",
    "min_p": "Drop tokens under min_p times the probability of the most likely one, 0 to 1.",
    "presence_penalty": "-2 to 2.",
    "frequency_penalty": "-2 to 2.",
    "repetition_penalty": "Over 0; 1 = off.",
    "logit_bias": "Token id to a value added to its logit, -100 to 100.",
    "seed": "Same seed, same request, same tokens. Choice i of n uses seed + i.",
    "stop": "Up to 16 strings that end the text; they are cut off.",
    "stop_token_ids": "Token ids that end the text.",
    "min_tokens": "No end-of-sequence and no stop id before that many tokens.",
    "ignore_eos": "Go on after end-of-sequence.",
    "skip_special_tokens": "Leave special tokens out of the text (default true).",
    "include_stop_str_in_output": "Keep the stop string in the text.",
    "n": "Choices per prompt.",
    "stream": "Server-sent events, one chunk per step.",
    "user": "Logged with the request.",
    "priority": "Higher runs earlier under --schedule-policy priority.",
    "cache_salt": "Requests share cached prefixes only within the same salt.",
    "rid": "Request id of the caller's choice: 1 to 100 visible ASCII characters.",
    "timeout_s": "Deadline in seconds; the server's own limit stays in force.",
    **GRAMMAR_HELP,
}


def given(name: str, default: Any = None) -> Any:
    """An optional field with its entry of HELP."""
    return dataclasses.field(default=default, metadata={"help": HELP[name]})


def about(help_: str, default: Any = None) -> Any:
    """An optional field with help of its own."""
    return dataclasses.field(default=default, metadata={"help": help_})


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of message content."""

    type: Literal["text"]
    text: str


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """Where an image is."""

    url: str = dataclasses.field(metadata={"help": "http(s) URL, or data URL with base64."})
    detail: Literal["auto", "low", "high"] | None = about(
        "low: few tokens. auto (default) and high: as large as the model takes it."
    )


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image, for models that see."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


@dataclass(frozen=True, slots=True)
class VideoUrl:
    """Where a video is, and how much of it is looked at."""

    url: str = dataclasses.field(metadata={"help": "http(s) URL, or data URL with base64."})
    fps: float | None = about("Frames a second that are looked at (default: the model's own).")
    max_frames: int | None = about("Most frames that are looked at.")


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video, for models that take them: frames of it."""

    type: Literal["video_url"]
    video_url: VideoUrl | str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of the conversation."""

    role: Role
    content: str | list[TextPart | ImagePart | VideoPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = about("Earlier calls of the assistant, handed to the chat template.")
    tool_call_id: str | None = about("The call that a tool message answers, handed to the chat template.")
    reasoning_content: str | None = about("What the assistant thought, handed to the chat template.")


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Only together with `stream`."""

    include_usage: bool | None = about("Send a last chunk with the usage and no choices.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFields:
    """What chat and text completions have in common."""

    model: str | None = given("model")
    temperature: float | None = given("temperature")
    top_p: float | None = given("top_p")
    top_k: int | None = given("top_k")
    min_p: float | None = given("min_p")
    presence_penalty: float | None = given("presence_penalty")
    frequency_penalty: float | None = given("frequency_penalty")
    repetition_penalty: float | None = given("repetition_penalty")
    logit_bias: dict[str, float] | None = given("logit_bias")
    seed: int | None = given("seed")
    stop: str | list[str] | None = given("stop")
    stop_token_ids: list[int] | None = given("stop_token_ids")
    min_tokens: int | None = given("min_tokens")
    ignore_eos: bool | None = given("ignore_eos")
    skip_special_tokens: bool | None = given("skip_special_tokens")
    include_stop_str_in_output: bool | None = given("include_stop_str_in_output")
    n: int | None = given("n")
    stream: bool | None = given("stream")
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = given("response_format")
    json_schema: JsonSchema | None = given("json_schema")
    regex: str | None = given("regex")
    ebnf: str | None = given("ebnf")
    choice: list[str] | None = given("choice")
    structural_tag: JsonSchema | None = given("structural_tag")
    structured_outputs: StructuredOutputs | None = given("structured_outputs")
    guided_json: JsonSchema | None = given("guided_json")
    guided_regex: str | None = given("guided_regex")
    guided_choice: list[str] | None = given("guided_choice")
    guided_grammar: str | None = given("guided_grammar")
    max_whitespace: int | None = given("max_whitespace")
    jump_forward: bool | None = given("jump_forward")
    user: str | None = given("user")
    priority: int | None = given("priority")
    cache_salt: str | None = given("cache_salt")
    rid: str | None = given("rid")
    timeout_s: float | None = given("timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletionBody(GenerationFields):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = given("max_completion_tokens")
    max_tokens: int | None = about("Most tokens to generate; by default as many as fit the context.")
    logprobs: bool | None = about("Return the log probability of each generated token.")
    top_logprobs: int | None = about("Alternatives per token, 0 to 20; needs logprobs.")
    add_generation_prompt: bool | None = about("Open the assistant's turn (default true).")
    continue_final_message: bool | None = about("Go on with the last message, which is the assistant's.")
    chat_template_kwargs: dict[str, Any] | None = about("Extra variables of the chat template.")
    tools: list[Tool] | None = about("Functions that the model may call.")
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = about(
        "auto (default): the model decides. none: the tools are not shown to it. required: it calls at least one. "
        "A function: it calls that one."
    )
    parallel_tool_calls: bool | None = about("false: at most one call per answer (default true).")
    separate_reasoning: bool | None = about("Put what the model thinks into reasoning_content (default true).")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionBody(GenerationFields):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]] = dataclasses.field(
        metadata={"help": "Text or token ids, or a list of either: one answer each."}
    )
    max_tokens: int | None = about("Most tokens to generate (default 16). 0 = compute the prompt only, see echo.")
    best_of: int | None = about("Accepted only when equal to n.")
    logprobs: int | None = about("Return log probabilities, with that many alternatives per token, 0 to 20.")
    echo: bool | None = about("Put the prompt before the text; with logprobs, its log probabilities too.")
