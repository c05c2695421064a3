"""What a request must satisfy before it goes to a scheduler, and what the scheduler gets.

Plain functions: errors name the parameter, its value and its limit.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from services.tokenizer.media.expansion import MediaPrompt
from services.tokenizer.model import Model
from shared import messages as m
from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.grammar import GrammarSpec
from shared.sampling import MAX_TOP_LOGPROBS, SamplingParams
from shared.subjects import Subjects

if TYPE_CHECKING:
    from services.tokenizer.prompt import Prompt

MAX_RID_CHARS = 128


def check_request(request: m.GenerateRequest, subjects: Subjects, vocab_size: int) -> None:
    """Refuse what can be refused before any work is done.

    Raises:
        InvalidRequest: naming the field.
    """
    if not 1 <= len(request.rid) <= MAX_RID_CHARS or not request.rid.isprintable():
        raise InvalidRequest(f"rid must be 1 to {MAX_RID_CHARS} printable characters", param="rid")
    subjects.check_reply(request.reply)
    if sum(given is not None for given in (request.chat, request.text, request.input_ids)) != 1:
        raise InvalidRequest("give exactly one of chat, text and input_ids")
    if request.chat is not None and not request.chat.messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    if request.media and request.chat is not None:
        raise InvalidRequest("images and videos of a chat belong into its messages", param="media")
    request.sampling.check()
    request.sampling.check_vocab(vocab_size)
    if request.grammar is not None:
        request.grammar.check()
    if not 0 <= request.top_logprobs_num <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs must be in [0, {MAX_TOP_LOGPROBS}], got {request.top_logprobs_num}", param="top_logprobs"
        )
    if request.timeout_s is not None and request.timeout_s <= 0:
        raise InvalidRequest(f"timeout_s must be positive, got {request.timeout_s:g}", param="timeout_s")


def check_text(text: str, max_chars: int, param: str) -> None:
    """Refuse a text that cannot fit before encoding it.

    Raises:
        ContextLengthExceeded: longer than `max_chars`.
    """
    if len(text) > max_chars:
        raise ContextLengthExceeded(
            f"the prompt has {len(text):,} characters, over the limit of {max_chars:,}: shorten it or raise"
            " --max-prompt-chars",
            param=param,
        )


def check_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the model does not have.

    Raises:
        InvalidRequest: naming the first such id.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InvalidRequest(f"token id {bad} is outside the vocabulary of {vocab_size}", param=param)


def check_length(prompt_tokens: int, context_length: int, param: str) -> None:
    """A prompt has at least one token and leaves room for at least one.

    Raises:
        InvalidRequest: empty.
        ContextLengthExceeded: too long.
    """
    if not prompt_tokens:
        raise InvalidRequest("the prompt is empty: give at least one token", param=param)
    if prompt_tokens >= context_length:
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens:,} tokens but the context is {context_length:,}, answer included:"
            " shorten it or raise --context-length",
            param=param,
        )


def prompt_param(request: m.GenerateRequest) -> str:
    """The request field that holds the prompt, for error messages."""
    return "messages" if request.chat is not None else "prompt" if request.text is not None else "input_ids"


def resolve_sampling(asked: SamplingParams, model: Model, prompt_tokens: int) -> SamplingParams:
    """Fill what the request left open and clip the length to the context."""
    room = model.context_length - prompt_tokens
    longest = room if asked.max_new_tokens is None else min(asked.max_new_tokens, room)
    return dataclasses.replace(
        asked.resolve(model.sampling_defaults),
        max_new_tokens=longest,
        min_new_tokens=min(asked.min_new_tokens, longest),
    )


def logprob_start(request: m.GenerateRequest, prompt_tokens: int) -> int:
    """First prompt position whose logprob is wanted, -1 for none.

    Raises:
        InvalidRequest: no position of the prompt.
    """
    start = request.logprob_start_len
    if not -1 <= start <= prompt_tokens:
        raise InvalidRequest(
            f"logprob_start_len must be in [-1, {prompt_tokens}] for this prompt, got {start}",
            param="logprob_start_len",
        )
    return start if request.return_logprob and start < prompt_tokens else -1


def tokenized(
    request: m.GenerateRequest,
    model: Model,
    prompt: Prompt,
    grammar: GrammarSpec | None,
    tokenizer_id: str,
    handle: int,
) -> m.TokenizedRequest:
    """The scheduler's form of a checked request."""
    token_ids, media = prompt.token_ids, prompt.media or MediaPrompt(prompt.token_ids)
    return m.TokenizedRequest(
        rid=request.rid,
        tokenizer_id=tokenizer_id,
        handle=handle,
        input_ids=np.asarray(token_ids, dtype=np.int32),
        sampling=resolve_sampling(request.sampling, model, len(token_ids) + max(0, media.position_delta)),
        eos_token_ids=model.eos_token_ids,
        return_logprob=request.return_logprob,
        top_logprobs_num=request.top_logprobs_num if request.return_logprob else 0,
        logprob_start_len=logprob_start(request, len(token_ids)),
        priority=request.priority,
        cache_salt=request.cache_salt,
        timeout_s=request.timeout_s,
        media=media.spans or None,
        positions=media.positions,
        position_delta=media.position_delta,
        grammar=grammar,
    )
