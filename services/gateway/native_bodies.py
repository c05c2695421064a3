"""Bodies of /generate, /tokenize and /detokenize, with SGLang's names.

/generate refuses unknown fields, except empty ones: a misspelled parameter is an error, not a silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.grammar_bodies import JsonSchema
from services.gateway.openai_bodies import ChatMessage, about, given
from services.gateway.tool_bodies import Tool


@dataclass(frozen=True, slots=True)
class NativeSampling:
    """`sampling_params` of /generate."""

    max_new_tokens: int | None = about("Most tokens to generate (default 128). 0 = compute the prompt only.")
    min_new_tokens: int | None = given("min_tokens")
    temperature: float | None = given("temperature")
    top_p: float | None = given("top_p")
    top_k: int | None = given("top_k")
    min_p: float | None = given("min_p")
    presence_penalty: float | None = given("presence_penalty")
    frequency_penalty: float | None = given("frequency_penalty")
    repetition_penalty: float | None = given("repetition_penalty")
    logit_bias: dict[str, float] | None = given("logit_bias")
    sampling_seed: int | None = given("seed")
    seed: int | None = about("Same as sampling_seed.")
    stop: str | list[str] | None = given("stop")
    stop_token_ids: list[int] | None = given("stop_token_ids")
    ignore_eos: bool | None = given("ignore_eos")
    skip_special_tokens: bool | None = given("skip_special_tokens")
    no_stop_trim: bool | None = about("Keep the stop string in the text.")
    json_schema: JsonSchema | None = given("json_schema")
    regex: str | None = given("regex")
    ebnf: str | None = given("ebnf")
    choice: list[str] | None = given("choice")
    structural_tag: JsonSchema | None = given("structural_tag")
    max_whitespace: int | None = given("max_whitespace")
    jump_forward: bool | None = given("jump_forward")
    n: int | None = given("n")


@dataclass(frozen=True, slots=True)
class GenerateBody:
    """POST /generate. Exactly one of `text` and `input_ids`; a list of either is a batch."""

    text: str | list[str] | None = about("Prompt, or prompts of a batch.")
    input_ids: list[int] | list[list[int]] | None = about("Prompt as token ids, or prompts of a batch.")
    image_data: str | list[str | list[str]] | None = about(
        "Images of the prompt, one for each of the model's placeholders in it: URLs or base64. For a batch a list with "
        "the images of each prompt, or one image each."
    )
    video_data: str | list[str | list[str]] | None = about("Videos, likewise.")
    sampling_params: NativeSampling | list[NativeSampling] | None = about("For all, or one per prompt.")
    return_logprob: bool | list[bool] | None = about("Return log probabilities; for all, or one per prompt.")
    logprob_start_len: int | list[int] | None = about(
        "First prompt position whose log probability is returned; -1 (default) = none of the prompt."
    )
    top_logprobs_num: int | list[int] | None = about("Alternatives per token, 0 to 20.")
    return_text_in_logprobs: bool | None = about("Put the token's text into log probability entries.")
    stream: bool | None = about("Server-sent events with the whole text so far.")
    rid: str | list[str] | None = given("rid")
    priority: int | None = given("priority")
    cache_salt: str | None = given("cache_salt")
    timeout_s: float | None = given("timeout_s")


@dataclass(frozen=True, slots=True)
class TokenizeBody:
    """POST /tokenize. Exactly one of `prompt` and `messages`."""

    prompt: str | list[str] | None = about("Text, or texts: one list of ids each.")
    messages: list[ChatMessage] | None = about("A conversation, rendered by the chat template.")
    tools: list[Tool] | None = about("Functions that the chat template shows; with messages.")
    model: str | None = given("model")
    add_special_tokens: bool | None = about("Add what the tokenizer adds to a prompt (default true).")
    add_generation_prompt: bool | None = about("Open the assistant's turn (default true); with messages.")


@dataclass(frozen=True, slots=True)
class DetokenizeBody:
    """POST /detokenize."""

    tokens: list[int] | list[list[int]]
    model: str | None = given("model")
    skip_special_tokens: bool | None = about("Leave special tokens out of the text (default true).")
