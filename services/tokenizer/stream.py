"""One running request: token ids in, text deltas out.

Rules (the same as vLLM's where both have one):
- The EOS or stop token that ended a request is among `token_ids` and counted in `completion_tokens`, but its text is
  left out unless `include_stop_str_in_output`; special tokens are skipped as `skip_special_tokens` says.
- A stop string ends the request at the token that completed it; later tokens of the same batch are dropped.
- Stop strings are not looked for in the first `min_new_tokens` tokens.
- Where the answer may have tool calls or reasoning, the text is read once more behind the stop strings (`answer.py`).
- `matched_stop` is the stop string, or the token id if it was asked for in `stop_token_ids`; None for EOS.

Knows nothing of the bus; `streams.StreamTable` feeds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

from services.tokenizer.answer import AnswerReader
from services.tokenizer.detokenizer import Detokenizer
from services.tokenizer.logprobs import LogprobArrays, LogprobTexts
from services.tokenizer.prompt import Prompt
from services.tokenizer.stop_strings import StopStrings
from shared import messages as m
from shared.messages.generation import ABORTED, LENGTH, RUNNING, STOPPED, FinishReason

_REASONS: dict[int, FinishReason] = {STOPPED: "stop", LENGTH: "length", ABORTED: "abort"}


class Stream:
    """State of one request between `GenerateRequest` and its last delta. Mutated by the event loop only."""

    __slots__ = (
        "_add",
        "_add_logprobs",
        "_answer",
        "_detokenizer",
        "_echo",
        "_finish_reason",
        "_grammar_param",
        "_ids",
        "_image_tokens",
        "_logprob_ids",
        "_logprobs",
        "_matched_stop",
        "_min_tokens",
        "_prompt_logprobs",
        "_prompt_text",
        "_prompt_tokens",
        "_request_stop_ids",
        "_seq",
        "_shows_stop",
        "_spell",
        "_stops",
        "_streams_deltas",
        "_text",
        "_top_num",
        "abort_asked",
        "again",
        "again_asked",
        "cached_tokens",
        "completion_tokens",
        "handle",
        "queued_after",
        "received",
        "reply",
        "rid",
        "scheduler_id",
    )  # fmt: skip

    def __init__(self, request: m.GenerateRequest, handle: int, detokenizer: Detokenizer, spell: LogprobTexts) -> None:
        sampling = request.sampling
        self.rid, self.reply, self.handle = request.rid, request.reply, handle
        self.scheduler_id = ""
        """Empty until the scheduler is known."""
        self.queued_after = -1
        """Number of the scheduler's ledger that its answer told; -1 until it has answered."""
        self.abort_asked = False
        self.again: Callable[[], Coroutine[Any, Any, m.Accepted]] | None = None
        """Encodes its images and queues it once more; None where that does not help, or once anything was received."""
        self.again_asked = False
        self.received = 0
        """Tokens got from the scheduler."""
        self.completion_tokens = 0
        """Tokens that belong to the answer."""
        self.cached_tokens = 0
        self._detokenizer, self._add, self._spell = detokenizer, detokenizer.add, spell
        self._shows_stop = sampling.include_stop_str_in_output
        self._stops = StopStrings(sampling.stop, include_in_output=self._shows_stop) if sampling.stop else None
        self._min_tokens = sampling.min_new_tokens
        self._request_stop_ids = frozenset(sampling.stop_token_ids)
        self._streams_deltas, self._echo = request.stream, request.echo
        self._add_logprobs, self._top_num = request.return_logprob, request.top_logprobs_num
        self._answer: AnswerReader | None = None
        self._grammar_param = ""
        self._seq = 0
        self._text = ""  # what the next delta carries
        self._ids: list[int] = []
        self._logprobs: list[m.TokenLogprob] = []
        self._finish_reason: FinishReason | None = None
        self._matched_stop: str | int | None = None
        self._prompt_tokens = self._image_tokens = 0
        self._prompt_text: str | None = None
        self._logprob_ids: list[int] = []  # prompt ids whose logprobs are still to come
        self._prompt_logprobs: list[m.TokenLogprob] = []

    @property
    def next_seq(self) -> int:
        """Number of the next delta."""
        return self._seq

    def begin(
        self, prompt: Prompt, logprob_start: int, answer: AnswerReader | None = None, grammar_param: str = ""
    ) -> None:
        """The prompt is known; called before the request goes to a scheduler.

        Args:
            answer: reads the text when there may be more in it than content.
            grammar_param: the request's field that a structural tag was made of, for the scheduler's errors.
        """
        self._answer, self._grammar_param = answer, grammar_param
        self._prompt_tokens = len(prompt.token_ids)
        self._image_tokens = 0 if prompt.media is None else prompt.media.media_tokens
        self._prompt_text = prompt.text if self._echo else None
        self._logprob_ids = prompt.token_ids[logprob_start:] if logprob_start >= 0 else []

    def add_prompt_logprobs(self, arrays: LogprobArrays) -> None:
        """Logprobs of the next prompt positions; they arrive in order, perhaps over several batches."""
        n = len(arrays.logprobs)
        self.again = None
        self._prompt_logprobs += self._spell.entries(self._logprob_ids[:n], arrays, self._top_num)
        del self._logprob_ids[:n]

    def add_tokens(self, ids: list[int], finish: int, arrays: LogprobArrays | None) -> bool:
        """Take new tokens and perhaps the scheduler's finish code.

        Returns:
            Whether the stream has ended. If `finish` was RUNNING then a stop string ended it and the scheduler does
            not know yet.
        """
        self.received += len(ids)
        if ids:
            self.again = None
        kept = self._plain(ids, finish) if self._stops is None else self._until_stop(self._stops, ids, finish)
        if kept < len(ids):
            ids = ids[:kept]
        self.completion_tokens += kept
        self._ids += ids
        if arrays is not None and self._add_logprobs:
            self._logprobs += self._spell.entries(ids, arrays, self._top_num)
        if finish != RUNNING and self._finish_reason is None:
            self._finish_reason = _REASONS[finish]
            if finish == STOPPED and ids and ids[-1] in self._request_stop_ids:
                self._matched_stop = ids[-1]
        if self._answer is not None:
            self._read(self._answer)
        return self._finish_reason is not None

    def take_delta(self) -> m.TextDelta | None:
        """What there is to send now: every step's gain of a streaming request, or everything at the end."""
        ended = self._finish_reason is not None
        if not ended and not (self._streams_deltas and self._ids):
            return None
        return self._delta(None)

    def fail(self, error: m.ErrorInfo) -> m.TextDelta:
        """The last delta of a stream that cannot go on; held-back text is dropped."""
        self._finish_reason = "error"
        if error.param == "structural_tag" and self._grammar_param:
            error = dataclasses.replace(error, param=self._grammar_param)
        return self._delta(error)

    def _delta(self, error: m.ErrorInfo | None) -> m.TextDelta:
        prompt = self._first_info() if self._seq == 0 else None
        text, reasoning, calls = (self._text, "", None) if self._answer is None else self._answer.take()
        delta = m.TextDelta(
            self.rid, self._seq, text, self._ids, self._logprobs, prompt, self.completion_tokens,
            self._finish_reason, self._matched_stop, error, reasoning, calls,
        )  # fmt: skip
        self._seq += 1
        self._text, self._ids = "", []
        if self._logprobs:
            self._logprobs = []
        return delta

    def _read(self, answer: AnswerReader) -> None:
        """Hand the new text on, and end the stream behind the only call that it may have."""
        answer.add(self._text)
        self._text = ""
        if answer.done and self._finish_reason is None:
            self._finish_reason = "stop"
        if self._finish_reason is not None:
            answer.finish()
        if self._finish_reason == "stop" and answer.calls:
            self._finish_reason = "tool_calls"

    def _first_info(self) -> m.PromptInfo:
        return m.PromptInfo(
            self._prompt_tokens, self.cached_tokens, self._prompt_text, self._prompt_logprobs, self._image_tokens
        )

    def _plain(self, ids: list[int], finish: int) -> int:
        shown = ids[:-1] if finish == STOPPED and not self._shows_stop else ids
        add = self._add
        for token_id in shown:
            self._text += add(token_id)
        if finish != RUNNING:
            self._text += self._detokenizer.finish()
        return len(ids)

    def _until_stop(self, stops: StopStrings, ids: list[int], finish: int) -> int:
        """Tokens up to the one that completed a stop string."""
        shown = len(ids) - 1 if finish == STOPPED and not self._shows_stop else len(ids)
        exempt = self._min_tokens - self.completion_tokens
        for n, token_id in enumerate(ids[:shown], 1):
            piece = self._add(token_id)
            self._text += piece if n <= exempt else stops.add(piece)
            if stops.matched is not None:
                return self._stopped_by(stops, n)
        if finish != RUNNING:
            self._text += stops.add(self._detokenizer.finish())
            if stops.matched is not None:
                return self._stopped_by(stops, len(ids))
            self._text += stops.finish()
        return len(ids)

    def _stopped_by(self, stops: StopStrings, kept: int) -> int:
        self._finish_reason, self._matched_stop = "stop", stops.matched
        return kept
