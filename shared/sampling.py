"""Sampling parameters: what a request may ask, defaults, limits.

The gateway parses them, the tokenizer fills what the request left open from the model's own defaults, the
scheduler enforces lengths and stop ids, the worker samples. A field that is None was not given.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from shared.errors import InvalidRequest

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of one generation, as sent by the client."""

    max_new_tokens: int | None = None
    """Most tokens to generate; None = as many as fit the context. 0 = compute the prompt only."""
    temperature: float | None = None
    """0 = greedy. Range 0..100."""
    top_p: float | None = None
    """Nucleus mass, 0 < top_p <= 1."""
    top_k: int | None = None
    """Keep the k most likely tokens; -1 or 0 = all."""
    min_p: float | None = None
    """Drop tokens under min_p times the probability of the most likely one, 0..1."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    """Divides (positive) or multiplies (negative) logits of tokens seen in prompt or output; > 0, 1 = off."""
    logit_bias: dict[str, float] = field(default_factory=dict)
    """Token id (as a decimal string) to a value added to its logit, -100..100."""
    seed: int | None = None
    """Same seed, same request, same tokens, whatever else runs in the batch."""
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    min_new_tokens: int = 0
    """EOS and stop ids cannot be sampled before that many tokens."""
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def check(self) -> None:
        """Reject values out of range.

        Raises:
            InvalidRequest: naming the parameter, its range and the value.
        """
        _within("max_new_tokens", self.max_new_tokens, 0, 2**31 - 1)
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("seed", self.seed, -(2**63), 2**63 - 1)
        _within("min_new_tokens", self.min_new_tokens, 0, 2**31 - 1)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise InvalidRequest(f"top_p must be in (0, 1], got {self.top_p}", param="top_p")
        if self.top_k is not None and (self.top_k < -1 or self.top_k >= 2**31):
            raise InvalidRequest(f"top_k must be -1 (off), 0 (off) or positive, got {self.top_k}", param="top_k")
        if self.repetition_penalty is not None and not 0.0 < self.repetition_penalty <= 100.0:
            raise InvalidRequest(
                f"repetition_penalty must be in (0, 100], got {self.repetition_penalty}", param="repetition_penalty"
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InvalidRequest(
                f"min_tokens {self.min_new_tokens} is over max_tokens {self.max_new_tokens}", param="min_tokens"
            )
        self._check_stops()
        self._check_logit_bias()

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"at most {MAX_STOP_STRINGS} stop strings, got {len(self.stop)}", param="stop")
        for s in self.stop:
            if not s or len(s) > MAX_STOP_STRING_CHARS:
                raise InvalidRequest(f"a stop string has 1 to {MAX_STOP_STRING_CHARS} characters", param="stop")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest(f"at most {MAX_STOP_TOKEN_IDS} stop token ids", param="stop_token_ids")

    def _check_logit_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(f"at most {MAX_LOGIT_BIAS} logit_bias entries", param="logit_bias")
        for key, value in self.logit_bias.items():
            if not (key.isascii() and key.isdigit()):
                raise InvalidRequest(f"logit_bias keys are token ids, got {key!r}", param="logit_bias")
            if not -100.0 <= value <= 100.0:
                raise InvalidRequest(f"logit_bias values are in [-100, 100], got {value}", param="logit_bias")

    def check_vocab(self, vocab_size: int) -> None:
        """Reject token ids outside the vocabulary.

        Raises:
            InvalidRequest: naming the field and the id.
        """
        for token_id in self.stop_token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequest(
                    f"stop token id {token_id} is outside the vocabulary of {vocab_size}", param="stop_token_ids"
                )
        for key in self.logit_bias:
            if len(key) > 10 or int(key) >= vocab_size:
                raise InvalidRequest(
                    f"logit_bias id {key} is outside the vocabulary of {vocab_size}", param="logit_bias"
                )

    def resolve(self, defaults: SamplingParams) -> SamplingParams:
        """Fill what the request left open (None) from the model's defaults."""
        changes = {
            name: getattr(defaults, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if getattr(self, name) is None
        }
        return dataclasses.replace(self, **changes)


NEUTRAL = SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0)
"""Defaults of the OpenAI API, used where a model brings none of its own."""


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} must be in [{low}, {high}], got {value}", param=name)
