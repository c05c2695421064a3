"""[walk 1] POST /generate, in SGLang's shape: single or batch, text or ids, cumulative text when streamed."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, TypeVar, cast

import orjson
from aiohttp import web

from services.gateway import requests as rq
from services.gateway.body import read_object
from services.gateway.core import Core, json_response
from services.gateway.grammar import grammar_of
from services.gateway.logprobs import native_logprobs, native_top_logprobs
from services.gateway.native_bodies import GenerateBody, NativeSampling
from services.gateway.native_media import native_media
from services.gateway.record import Record, record_of
from services.gateway.refused import is_empty
from services.gateway.responses import AbortFinish, Generation, LengthFinish, MetaInfo, StopFinish
from services.gateway.results import Result, collect
from services.gateway.sse import event, send_events
from services.gateway.streams import Delivery
from shared import messages as m
from shared import schema
from shared.errors import InvalidRequest, RhizomeError

DEFAULT_MAX_NEW_TOKENS = 128
NEUTRAL_SAMPLING = {"spaces_between_special_tokens": True}
"""What SGLang's own client always sends and what asks for nothing here."""
T = TypeVar("T")


class NativeGenerate:
    """Handler of the route."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def post(self, request: web.Request) -> web.StreamResponse:
        body = parse_generate(await read_object(request))
        record = record_of(request)
        batch = is_batch(body)
        generations = await self._core.by_reference(self.generations(body, record))
        many = batch or len(generations) > 1
        render = NativeRender(generations, record, bool(body.return_text_in_logprobs), many)
        async with self._core.call(request, generations, rq.deadline_s(body.timeout_s, self._core.config)) as call:
            if body.stream:
                return await send_events(request, call, render.events, lambda: b"")
            answers = [render.answer(i, result) for i, result in enumerate(await collect(call))]
            return json_response(answers if many else answers[0])

    def generations(self, body: GenerateBody, record: Record) -> list[m.GenerateRequest]:
        """The body as requests to a tokenizer: prompt-major, n per prompt.

        Raises:
            InvalidRequest: values are out of range or contradict each other.
        """
        config = self._core.config
        rq.check_tenancy(body.priority, body.cache_salt)
        prompts, param = _prompts(body)
        rq.check_prompts(prompts, param, config.max_prompts_per_request)
        count = len(prompts)
        samplings = _per_prompt(body.sampling_params, count, "sampling_params", NativeSampling())
        n = rq.check_n(samplings[0].n, config.max_n, "sampling_params.n")
        if any((s.n or 1) != n for s in samplings):
            raise InvalidRequest("n must be the same for every prompt", param="sampling_params.n")
        return_logprob = _per_prompt(body.return_logprob, count, "return_logprob", False)
        starts = _per_prompt(body.logprob_start_len, count, "logprob_start_len", -1)
        tops = _per_prompt(body.top_logprobs_num, count, "top_logprobs_num", 0)
        requests: list[m.GenerateRequest] = []
        media = native_media(body.image_data, body.video_data, count, batch=is_batch(body))
        for i, (prompt, rid) in enumerate(zip(prompts, _rids(body.rid, count, record), strict=True)):
            sampling = rq.native_sampling(samplings[i], DEFAULT_MAX_NEW_TOKENS)
            rq.check_seed_range(sampling.seed, n)
            if not -1 <= starts[i] < 2**31:
                raise InvalidRequest(
                    f"logprob_start_len must be -1 or a position, got {starts[i]}", param="logprob_start_len"
                )
            base = m.GenerateRequest(
                rid=rid,
                reply=self._core.backend.reply,
                sampling=sampling,
                stream=bool(body.stream),
                return_logprob=return_logprob[i],
                top_logprobs_num=rq.check_top_logprobs(tops[i], "top_logprobs_num") if return_logprob[i] else 0,
                logprob_start_len=starts[i] if return_logprob[i] else -1,
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                timeout_s=rq.deadline_s(body.timeout_s, config),
                grammar=grammar_of(samplings[i], "sampling_params."),
                media=media[i] or None,
            )
            requests += rq.fan_out(base, [prompt], n)
        return requests


def is_batch(body: GenerateBody) -> bool:
    """Whether there are several prompts, be it one in a list."""
    return isinstance(body.text, list) or bool(body.input_ids and isinstance(body.input_ids[0], list))


def parse_generate(raw: dict[str, Any]) -> GenerateBody:
    """A decoded body; unknown fields are refused unless they are empty.

    Raises:
        InvalidRequest: naming the field at fault.
    """
    fields = _without_empty(raw, GenerateBody)
    if isinstance(params := fields.get("sampling_params"), list):
        fields["sampling_params"] = [_without_empty(p, NativeSampling) for p in params]
    else:
        fields["sampling_params"] = _without_empty(params, NativeSampling)
    return schema.parse(GenerateBody, fields)


def _without_empty(raw: Any, cls: type) -> Any:
    if not isinstance(raw, dict):
        return raw  # the parser says what is wrong with it
    known = {f.name for f in dataclasses.fields(cls)}
    return {
        name: value
        for name, value in raw.items()
        if name in known or not (is_empty(value) or NEUTRAL_SAMPLING.get(name) == value)
    }


def _prompts(body: GenerateBody) -> tuple[list[rq.Prompt], str]:
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("give exactly one of text and input_ids", param="text")
    if body.text is not None:
        return ([body.text] if isinstance(body.text, str) else [*body.text]), "text"
    ids = body.input_ids or []
    if ids and isinstance(ids[0], list):
        return cast(list[rq.Prompt], ids), "input_ids"
    return [ids], "input_ids"


def _rids(rid: str | list[str] | None, count: int, record: Record) -> list[str]:
    if isinstance(rid, list):
        if len(rid) != count:
            raise InvalidRequest(f"rid has {len(rid)} entries for {count} prompts", param="rid")
        if len(set(rid)) != count:
            raise InvalidRequest("rid has the same entry twice", param="rid")
        return [rq.check_rid(r, record.rid, f"rid[{i}]") for i, r in enumerate(rid)]
    record.rid = rq.check_rid(rid, record.rid)
    return [record.rid] if count == 1 else [f"{record.rid}-{i}" for i in range(count)]


def _per_prompt(value: T | list[T] | None, count: int, param: str, default: T) -> list[T]:
    """One value per prompt from one for all, a list, or none."""
    if value is None:
        return [default] * count
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InvalidRequest(f"{param} has {len(value)} entries for {count} prompts", param=param)
    return value


class NativeRender:
    """Sums of deltas to answers. One event per generation and batch of deltas: its text holds all before it."""

    def __init__(self, generations: list[m.GenerateRequest], record: Record, with_text: bool, many: bool) -> None:
        self._generations, self._record, self._with_text, self._many = generations, record, with_text, many
        self._results = [Result() for _ in generations]

    def events(self, batch: list[Delivery]) -> bytes:
        touched: dict[int, None] = {}
        for index, delta in batch:
            self._results[index].add(delta)
            touched[index] = None
        return b"".join(event(self._event(i)) for i in touched)

    def _event(self, index: int) -> bytes:
        answer = self.answer(index, self._results[index])
        return orjson.dumps(dataclasses.replace(answer, index=index) if self._many else answer)

    def answer(self, index: int, result: Result) -> Generation:
        asked, prompt = self._generations[index], result.prompt
        meta = MetaInfo(
            id=asked.rid,
            finish_reason=_finish(result),
            prompt_tokens=prompt.prompt_tokens if prompt else 0,
            completion_tokens=result.completion_tokens,
            cached_tokens=prompt.cached_tokens if prompt else 0,
            image_tokens=prompt.image_tokens if prompt else 0,
            e2e_latency=time.perf_counter() - self._record.arrived_s,
        )
        if asked.return_logprob:
            before = prompt.logprobs if prompt else []
            meta = dataclasses.replace(
                meta,
                input_token_logprobs=native_logprobs(before, self._with_text),
                output_token_logprobs=native_logprobs(result.logprobs, self._with_text),
            )
            if asked.top_logprobs_num:
                meta = dataclasses.replace(
                    meta,
                    input_top_logprobs=native_top_logprobs(before, self._with_text),
                    output_top_logprobs=native_top_logprobs(result.logprobs, self._with_text),
                )
        return Generation(result.text, result.token_ids, meta)


def _finish(result: Result) -> StopFinish | LengthFinish | AbortFinish | None:
    if result.last is None:
        return None
    reason = result.last.finish_reason
    if reason == "stop":
        return StopFinish(result.last.matched_stop)
    if reason == "length":
        return LengthFinish(result.completion_tokens)
    if reason == "abort":
        return AbortFinish("the generation was aborted")
    raise RhizomeError(f"a generation cannot end with {reason!r}")
