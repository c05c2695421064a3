"""Parsed bodies to `GenerateRequest`s: sampling parameters, prompts, fan-out over n.

Plain functions; every value that a client can get wrong ends here with the name it has in the client's body.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from services.gateway.config import GatewayConfig
from services.gateway.native_bodies import NativeSampling
from services.gateway.openai_bodies import ChatMessage, GenerationFields, StreamOptions
from shared import messages as m
from shared import schema
from shared.errors import InvalidRequest
from shared.sampling import MAX_TOP_LOGPROBS, SamplingParams

Prompt = str | list[int]
MAX_TOKEN_ID = 2**31 - 1
MAX_CACHE_SALT_CHARS = 256
_RID = re.compile(r"[!-~]{1,100}")
_OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
_NATIVE_NAMES = {"min_tokens": "min_new_tokens"}


def openai_sampling(body: GenerationFields, max_new_tokens: int | None) -> SamplingParams:
    """Sampling parameters of an OpenAI body.

    Raises:
        InvalidRequest: a value is out of range.
    """
    return _checked(_sampling(body, max_new_tokens, body.min_tokens, body.seed, body.include_stop_str_in_output),
                    _OPENAI_NAMES, "")  # fmt: skip


def native_sampling(body: NativeSampling, default_max_new_tokens: int) -> SamplingParams:
    """Sampling parameters of a /generate body.

    Raises:
        InvalidRequest: a value is out of range.
    """
    if None not in (body.seed, body.sampling_seed) and body.seed != body.sampling_seed:
        raise InvalidRequest("seed and sampling_seed differ: give one", param="sampling_params.seed")
    seed = body.sampling_seed if body.seed is None else body.seed
    limit = default_max_new_tokens if body.max_new_tokens is None else body.max_new_tokens
    return _checked(_sampling(body, limit, body.min_new_tokens, seed, body.no_stop_trim),
                    _NATIVE_NAMES, "sampling_params.")  # fmt: skip


def _sampling(
    body: GenerationFields | NativeSampling,
    max_new_tokens: int | None,
    min_new_tokens: int | None,
    seed: int | None,
    keep_stop: bool | None,
) -> SamplingParams:
    stop = body.stop if body.stop is not None else []
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias or {},
        seed=seed,
        stop=[stop] if isinstance(stop, str) else stop,
        stop_token_ids=body.stop_token_ids or [],
        min_new_tokens=min_new_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        include_stop_str_in_output=bool(keep_stop),
    )


def _checked(sampling: SamplingParams, names: Mapping[str, str], prefix: str) -> SamplingParams:
    """Check ranges; faults name the field as the client wrote it."""
    try:
        sampling.check()
    except InvalidRequest as fault:
        inside = fault.param or ""
        outside = names.get(inside, inside)
        raise InvalidRequest(fault.message.replace(inside, outside, 1), param=prefix + outside) from fault
    check_ids(sampling.stop_token_ids, prefix + "stop_token_ids")
    return sampling


def check_ids(ids: Sequence[int], param: str) -> None:
    """Token ids fit 31 bits; the tokenizer knows the vocabulary.

    Raises:
        InvalidRequest: one is negative or too large.
    """
    if ids and (min(ids) < 0 or max(ids) > MAX_TOKEN_ID):
        bad = next(i for i in ids if not 0 <= i <= MAX_TOKEN_ID)
        raise InvalidRequest(f"{param} has the token id {bad}: ids are 0 to {MAX_TOKEN_ID:,}", param=param)


def check_prompts(prompts: Sequence[Prompt], param: str, limit: int) -> None:
    """A batch has 1 to `limit` prompts, each with something in it.

    Raises:
        InvalidRequest: otherwise.
    """
    if not prompts:
        raise InvalidRequest(f"{param} is empty: give at least one prompt", param=param)
    if len(prompts) > limit:
        raise InvalidRequest(
            f"{len(prompts):,} prompts are over the limit of {limit:,}: split the request", param=param
        )
    for i, prompt in enumerate(prompts):
        where = param if len(prompts) == 1 else f"{param}[{i}]"
        if not prompt:
            raise InvalidRequest(f"{where} is empty: a prompt needs at least one character or token", param=where)
        if not isinstance(prompt, str):
            check_ids(prompt, where)


def check_n(n: int | None, limit: int, param: str = "n") -> int:
    """Choices per prompt, 1 when not given.

    Raises:
        InvalidRequest: under 1 or over the limit.
    """
    n = 1 if n is None else n
    if not 1 <= n <= limit:
        raise InvalidRequest(f"{param} must be in [1, {limit}], got {n}", param=param)
    return n


def check_top_logprobs(count: int | None, param: str) -> int:
    """Alternatives per token, 0 when not given.

    Raises:
        InvalidRequest: negative or over the limit.
    """
    count = 0 if count is None else count
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"{param} must be in [0, {MAX_TOP_LOGPROBS}], got {count}", param=param)
    return count


def check_rid(rid: str | None, minted: str, param: str = "rid") -> str:
    """The caller's request id, or the minted one.

    Raises:
        InvalidRequest: it would not survive a log line, a header or a subject.
    """
    if rid is None:
        return minted
    if not _RID.fullmatch(rid):
        raise InvalidRequest(f"{param} must be 1 to 100 visible ASCII characters", param=param)
    return rid


def deadline_s(asked: float | None, config: GatewayConfig) -> float:
    """Seconds a generation may take: the client's wish within the server's limit.

    Raises:
        InvalidRequest: not positive.
    """
    if asked is None:
        return config.request_timeout_s
    if asked <= 0:
        raise InvalidRequest(f"timeout_s must be positive, got {asked}", param="timeout_s")
    return min(asked, config.request_timeout_s)


def as_messages(messages: Sequence[ChatMessage]) -> list[dict[str, object]]:
    """Checked chat messages for the template, as plain JSON objects.

    Raises:
        InvalidRequest: no message, or one without content.
    """
    if not messages:
        raise InvalidRequest("messages is empty: give at least one message", param="messages")
    for i, message in enumerate(messages):
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            where = f"messages[{i}].content"
            raise InvalidRequest(f"missing required field {where!r}", param=where)
    return [schema.to_json(message) for message in messages]


def fan_out(base: m.GenerateRequest, prompts: Sequence[Prompt | m.ChatInput], n: int) -> list[m.GenerateRequest]:
    """One request per prompt and choice, prompt-major. Choices of a prompt differ by seed."""
    many = len(prompts) * n > 1
    requests: list[m.GenerateRequest] = []
    for prompt in prompts:
        for choice in range(n):
            sampling = base.sampling
            if sampling.seed is not None and choice:
                sampling = dataclasses.replace(sampling, seed=sampling.seed + choice)
            requests.append(
                dataclasses.replace(
                    base,
                    rid=f"{base.rid}-{len(requests)}" if many else base.rid,
                    chat=prompt if isinstance(prompt, m.ChatInput) else None,
                    text=prompt if isinstance(prompt, str) else None,
                    input_ids=prompt if isinstance(prompt, list) else None,
                    sampling=sampling,
                )
            )
    return requests


def check_seed_range(seed: int | None, n: int) -> None:
    """The last choice's seed, seed + n - 1, still has to fit.

    Raises:
        InvalidRequest: it does not.
    """
    if seed is not None and seed + n - 1 > 2**63 - 1:
        raise InvalidRequest(f"seed must be at most 2^63 - n, got {seed}", param="seed")


def check_tenancy(priority: int | None, cache_salt: str | None) -> None:
    """Fields that travel to the scheduler as they are, within bounds.

    Raises:
        InvalidRequest: one is out of them.
    """
    if priority is not None and not -(2**31) <= priority < 2**31:
        raise InvalidRequest(f"priority must fit 32 bits, got {priority}", param="priority")
    if cache_salt is not None and len(cache_salt) > MAX_CACHE_SALT_CHARS:
        raise InvalidRequest(f"cache_salt has at most {MAX_CACHE_SALT_CHARS} characters", param="cache_salt")


def check_stream_options(stream: bool | None, options: StreamOptions | None) -> None:
    """`stream_options` belongs to `stream`.

    Raises:
        InvalidRequest: it came without.
    """
    if options is not None and not stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
