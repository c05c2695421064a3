"""Operations that ask the backend: generate (whole, streamed, speculative), a chat turn as one call, select."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from rhizome.lang import ir, turn_pattern
from rhizome.lang.backends.base import Completion, Delta, Usage, single
from rhizome.lang.errors import SpeculationMismatch, Unsupported
from rhizome.lang.reasoning import ReasoningSplitter, held_back
from rhizome.lang.sampling import SamplingParams
from rhizome.lang.slots import Slot
from rhizome.lang.speculation import Piece, ahead, applies, first_stop

if TYPE_CHECKING:
    from rhizome.lang.executor import Executor


def resolve(ex: Executor, expr: ir.Gen) -> SamplingParams:
    """The parameters of a generation: its own, the run's, the template's stop strings."""
    return expr.params.over(ex.run.defaults).resolved(ex.run.template.stop_str)


async def generate(ex: Executor, expr: ir.Gen, slot: Slot, thoughts: Slot | None) -> None:
    """Carry out a `gen`."""
    sink = _Sink(ex, expr, slot, thoughts)
    await _generate(ex, resolve(ex, expr), sink)


async def _generate(ex: Executor, params: SamplingParams, sink: _Sink) -> None:
    """Raises:
    Unsupported: several samples and a regular expression that ends one.
    """
    run = ex.run
    if params.stop_regex and (params.n or 1) > 1:
        raise Unsupported("stop_regex ends one sample: leave out n, or stop at strings (stop=...)")
    if ex.guessing is not None:
        piece = ex.guessing.gen(params)
        if piece is not None:
            sink.finish(piece.text, piece.meta(speculated=True), Usage(), guessed=True)
            return
        if applies(params) and not sink.separates:
            await _generate_ahead(ex, params, sink)
            return
    if params.stop_regex or (run.stream and (params.n or 1) == 1):
        await _generate_streamed(ex, params, sink)
        return
    completions = await run.backend.generate(ex.convo.prompt(), params)
    usage = _total(completions)
    run.report.add(usage)
    if (params.n or 1) == 1:
        done = single(completions)
        sink.finish(done.text, done.meta, usage)
    else:
        sink.finish_many(completions, usage)


async def _generate_streamed(ex: Executor, params: SamplingParams, sink: _Sink) -> None:
    """In pieces: for readers of a stream, and to stop at a regular expression."""
    patterns = [re.compile(p) for p in params.stop_regex or ()]
    text = ""
    usage: Usage | None = None
    meta: dict[str, Any] = {}
    async with aclosing(_deltas(ex, params)) as deltas:
        async for delta in deltas:
            text += delta.text
            meta, usage = delta.meta or meta, delta.usage or usage
            found = [(m.start(), m.group(), p.pattern) for p in patterns if (m := p.search(text))]
            if found and min(found)[1]:
                at, matched, _ = min(found)
                text = text[:at]
                meta = {**meta, "finish_reason": {"type": "stop", "matched": matched}}
                break
            if not patterns:
                sink.grow(delta.text, meta)
    if usage is None:  # broken off: what was told until then
        usage = Usage(*(meta.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")))
    ex.run.report.add(usage)
    sink.finish(text, meta, usage)


async def _deltas(ex: Executor, params: SamplingParams) -> AsyncGenerator[Delta, None]:
    """The answer in pieces; one that may call tools in one piece, for streams do not tell the calls."""
    backend, prompt = ex.run.backend, ex.convo.prompt()
    if params.tools:
        done = single(await backend.generate(prompt, params))
        yield Delta(done.text, done.meta, done.usage, done.finish)
        return
    async with aclosing(backend.stream(prompt, params)) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            yield delta


async def _generate_ahead(ex: Executor, params: SamplingParams, sink: _Sink) -> None:
    """Ask past the end and keep the surplus."""
    guessing, run = ex.guessing, ex.run
    assert guessing is not None
    asked = ahead(params, guessing.spec_tokens)
    if run.stream:
        completion = await _stream_ahead(ex, params, asked, sink)
    else:
        completion = single(await run.backend.generate(ex.convo.prompt(), asked, with_tokens=True))
    run.report.add(completion.usage)
    piece = guessing.call(completion, params)
    meta = {**completion.meta, **piece.meta(speculated=False)}
    sink.finish(piece.text, meta, completion.usage)


async def _stream_ahead(ex: Executor, params: SamplingParams, asked: SamplingParams, sink: _Sink) -> Completion:
    """The whole answer; what certainly belongs to the generation is passed on as it comes."""
    text, shown = "", 0
    tokens: list[str] | None = []
    meta: dict[str, Any] = {}
    usage, finish = Usage(), "stop"
    async with aclosing(ex.run.backend.stream(ex.convo.prompt(), asked, with_tokens=True)) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            text += delta.text
            tokens = None if tokens is None or (delta.text and delta.tokens is None) else tokens + (delta.tokens or [])
            meta, usage, finish = delta.meta or meta, delta.usage or usage, delta.finish or finish
            safe = _sure(text, tokens, params)
            if safe > shown:
                sink.grow(text[shown:safe], meta)
                shown = safe
    return Completion(text, meta, usage, finish, tokens)


def _sure(text: str, tokens: list[str] | None, params: SamplingParams) -> int:
    """Characters that are in the generation for certain: before any stop string and within its limit of tokens."""
    if tokens is None:
        return 0
    reach = sum(len(token) for token in tokens[: params.limit])
    _, at = first_stop(text, params.stops)
    end = at if at >= 0 else len(text) - max((held_back(text, stop) for stop in params.stops), default=0)
    return min(end, reach, len(text))


def close_turn(ex: Executor) -> None:
    """The assistant's turn ends: texts that are left are its own, a surplus is waste."""
    if ex.turn is None:
        return
    write_texts(ex)
    turn, ex.turn = ex.turn, None
    if turn.surplus is not None:
        ex.run.report.tokens_wasted += turn.tokens_left


def write_texts(ex: Executor) -> None:
    """Texts of the turn that wait with no generation become the state's text; a later part cannot be matched."""
    assert ex.turn is not None
    terms, ex.turn.terms = ex.turn.terms, []
    for term in terms:
        assert isinstance(term, str), "generations were computed before"
        ex.append(term, "text")
        ex.turn.begun = True


async def compute_turn(ex: Executor, *, final: bool) -> None:
    """Compute the collected part of an assistant's turn with one call, or from the surplus of the call before.

    Raises:
        SpeculationMismatch: the model does not keep to the pattern.
    """
    turn, run = ex.turn, ex.run
    assert turn is not None
    gens = turn.gens()
    alone = not turn.begun and len(gens) == 1 and turn.terms[0] is gens[0]
    if alone and (final or not applies(gens[0].params)):
        # An ordinary turn: a generation, perhaps followed by text.
        ex.turn = None  # its text is the state's own
        try:
            await _generate(ex, gens[0].params, _Sink(ex, gens[0].expr, gens[0].slot, gens[0].thoughts))
        except BaseException:
            ex.turn = turn  # for those who wait
            raise
        turn.terms.pop(0)
        ex.turn, turn.begun = turn, True
        return
    assert run.spec_tokens is not None
    params = turn.params(run.spec_tokens)
    began_s = time.perf_counter()
    if turn.begun:
        matched, reason = _from_surplus(turn)
        answers = 0
    else:
        matched, reason, answers = await _ask_turn(ex, turn, params)
    if matched is None:
        raise SpeculationMismatch(
            f"the assistant's turn has {len(gens)} generations for one call to a chat model, and after {answers} "
            f"call(s): {reason}. Show the format in the messages before, give every gen a stop string, or use a "
            "backend that continues a begun turn (prefill=True)"
        )
    _write_turn(ex, turn, matched, began_s)
    run.report.calls_saved += len(gens) - (1 if answers else 0)


def _from_surplus(turn: turn_pattern.TurnPattern) -> tuple[turn_pattern.Matched | None, str]:
    if turn.surplus is None:
        return None, "the turn goes on after a part of it was read, and the model had ended it there"
    matched = turn_pattern.match(turn, turn.surplus, at_begin=False)
    return (None, matched) if isinstance(matched, str) else (matched, "")


async def _ask_turn(
    ex: Executor, turn: turn_pattern.TurnPattern, params: SamplingParams
) -> tuple[turn_pattern.Matched | None, str, int]:
    run, reason = ex.run, ""
    tries = 1 if params.is_greedy or params.seed is not None else turn_pattern.MAX_TRIES  # the same again is no help
    for attempt in range(tries):
        if attempt:
            run.report.retries += 1
        answer = single(await run.backend.generate(ex.convo.prompt(), params, with_tokens=True))
        run.report.add(answer.usage)
        matched = turn_pattern.match(turn, answer, at_begin=True)
        if not isinstance(matched, str):
            return matched, "", attempt + 1
        reason = matched
        run.report.tokens_wasted += answer.usage.completion_tokens
    return None, reason, tries


def _write_turn(ex: Executor, turn: turn_pattern.TurnPattern, matched: turn_pattern.Matched, began_s: float) -> None:
    terms, pieces = turn.terms, iter(matched.pieces)
    turn.terms, turn.begun = [], True
    turn.surplus, turn.tokens_left = matched.rest, matched.tokens_left
    ex.turn = None  # what follows is text of the state itself
    for term, text in zip(terms, matched.texts, strict=True):
        if isinstance(term, str):
            ex.append(text, "text")
        else:
            piece: Piece = next(pieces)
            sink = _Sink(ex, term.expr, term.slot, term.thoughts, began_s)
            sink.finish(piece.text, piece.meta(speculated=True), Usage(), guessed=True)
    ex.turn = turn


async def select(ex: Executor, expr: ir.Select, slot: Slot) -> None:
    """Carry out a `select`."""
    if expr.temperature > 1e-5:
        raise Unsupported("select takes the best choice: leave out temperature, or generate with a grammar of choices")
    if ex.guessing is not None:
        ex.guessing.drop()
    began_s = time.perf_counter()
    decision, usage = await ex.run.backend.select(ex.convo.prompt(), expr.choices, expr.choices_method)
    ex.run.report.add(usage)
    ex.committed = len(ex.convo.text)
    ex.append(decision.decision)
    ex.run.record.event(
        "select", state=ex.id, name=expr.name, choices=expr.choices, text=decision.decision,
        scores=decision.meta_info.get("normalized_prompt_logprobs"), seconds=round(time.perf_counter() - began_s, 6),
        line=str(expr.line), **dataclasses.asdict(usage),
    )  # fmt: skip
    slot.resolve(decision.decision, decision.meta_info)


class _Sink:
    """Takes a generation's text to the state, its variable, the thoughts' variable and the record."""

    def __init__(
        self, ex: Executor, expr: ir.Gen, slot: Slot, thoughts: Slot | None, began_s: float | None = None
    ) -> None:
        self._ex, self._expr, self._slot, self._thoughts = ex, expr, slot, thoughts
        self._splitter = ReasoningSplitter(expr.reasoning) if expr.reasoning else None
        self._raw = 0
        self._began_s = time.perf_counter() if began_s is None else began_s

    @property
    def separates(self) -> bool:
        """Takes thoughts out of the text: what the model says next was said after them, and is no guess."""
        return self._splitter is not None

    def grow(self, text: str, meta: dict[str, Any]) -> None:
        """A piece of the model's text."""
        self._raw += len(text)
        self._pass(*(self._splitter.feed(text) if self._splitter else ("", text)), meta)

    def finish(self, text: str, meta: dict[str, Any], usage: Usage, *, guessed: bool = False) -> None:
        """The whole of the model's text; what was not passed on yet is now."""
        self.grow(text[self._raw :], meta)
        if self._splitter:
            self._pass(*self._splitter.end(), meta)
            if self._ex.guessing is not None:
                self._ex.guessing.drop()
        if not guessed:
            self._ex.committed = len(self._ex.convo.text)
        self._record(text, meta, usage)
        if self._thoughts is not None:
            self._thoughts.resolve(self._thoughts.partial, meta)
        self._slot.resolve(self._slot.partial, meta)

    def finish_many(self, completions: Sequence[Completion], usage: Usage) -> None:
        """Several samples: the variable is their list, the state goes on with the first."""
        if self._splitter:
            raise Unsupported("separate_reasoning takes one sample: leave out n")
        self._ex.append(completions[0].text)
        self._record([c.text for c in completions], completions[0].meta, usage)
        self._slot.resolve([c.text for c in completions], {"samples": [c.meta for c in completions]})

    def _pass(self, thoughts: str, answer: str, meta: dict[str, Any]) -> None:
        self._ex.append(answer)
        self._slot.grow(answer, meta)
        if self._thoughts is not None and thoughts:
            self._thoughts.grow(thoughts, meta)

    def _record(self, text: Any, meta: dict[str, Any], usage: Usage) -> None:
        record = self._ex.run.record
        if record.is_on:
            record.event(
                "gen", state=self._ex.id, name=self._expr.name, text=text, line=str(self._expr.line),
                seconds=round(time.perf_counter() - self._began_s, 6), finish=meta.get("finish_reason"),
                speculated=meta.get("speculated"), logprobs=meta.get("output_token_logprobs"),
                **dataclasses.asdict(usage),
            )  # fmt: skip


def _total(completions: Sequence[Completion]) -> Usage:
    return Usage(
        sum(c.usage.prompt_tokens for c in completions),
        sum(c.usage.completion_tokens for c in completions),
        sum(c.usage.cached_tokens for c in completions),
    )
