"""Sampling parameters of a generation. None = not given; a `gen` overrides what `run` was given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rhizome.lang.errors import LanguageError

DEFAULT_MAX_NEW_TOKENS = 128
REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""
_DTYPES: dict[Any, tuple[str, tuple[str, ...]]] = {
    int: (REGEX_INT, (" ", "\n")), "int": (REGEX_INT, (" ", "\n")),
    float: (REGEX_FLOAT, (" ", "\n")), "float": (REGEX_FLOAT, (" ", "\n")),
    str: (REGEX_STR, ()), "str": (REGEX_STR, ()),
    bool: (REGEX_BOOL, ()), "bool": (REGEX_BOOL, ()),
}  # fmt: skip
GRAMMARS = ("regex", "json_schema", "ebnf", "structural_tag")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What one generation asks for, with SGLang's names."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    n: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    stop_regex: str | Sequence[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None
    dtype: type | str | None = None
    regex: str | None = None
    json_schema: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    tools: Sequence[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """These, and what they leave open from `defaults`."""
        given = {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None}
        return dataclasses.replace(defaults, **given)

    def resolved(self, more_stops: Sequence[str] = ()) -> SamplingParams:
        """Lists made of single values, `dtype` turned into a regex, defaults of the language filled in.

        Raises:
            LanguageError: two grammars in one generation, an unknown dtype, or a regex that is none.
        """
        stops = [*_listed(self.stop), *(s for s in more_stops if s not in _listed(self.stop))]
        regex = self.regex
        if self.dtype is not None:
            if self.dtype not in _DTYPES:
                raise LanguageError(f"dtype {self.dtype!r}: use int, float, str or bool")
            if regex is not None:
                raise LanguageError("give dtype or regex, not both")
            regex, own = _DTYPES[self.dtype]
            stops += [s for s in own if s not in stops]
        given = [name for name in GRAMMARS if name != "regex" and getattr(self, name) is not None]
        given += ["regex"] if regex is not None else []
        if len(given) > 1:
            raise LanguageError(f"one generation has one grammar, got {' and '.join(given)}")
        return dataclasses.replace(
            self,
            stop=tuple(stops),
            stop_regex=_listed(self.stop_regex),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            max_new_tokens=DEFAULT_MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            dtype=None,
            regex=regex,
        )

    # What follows reads resolved parameters.
    @property
    def stops(self) -> tuple[str, ...]:
        return _listed(self.stop)

    @property
    def limit(self) -> int:
        """Most tokens to generate."""
        return DEFAULT_MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @property
    def grammar(self) -> tuple[str, str] | None:
        """Kind and source of the grammar, if any."""
        for name in GRAMMARS:
            source = getattr(self, name)
            if source is not None:
                return name, source
        return None

    @property
    def is_greedy(self) -> bool:
        return (1.0 if self.temperature is None else self.temperature) <= 1e-5

    def distribution(self) -> tuple[Any, ...]:
        """What decides how likely a token is: equal for two generations that one call may serve."""
        return (
            self.temperature, self.top_p, self.top_k, self.min_p, self.frequency_penalty, self.presence_penalty,
            self.repetition_penalty, self.seed, tuple(self.stop_token_ids or ()), self.ignore_eos,
        )  # fmt: skip


def check_regex(pattern: str | None) -> None:
    """Raises:
    LanguageError: Python's `re` cannot read it.
    """
    if pattern is None:
        return
    try:
        re.compile(pattern)
    except re.error as fault:
        raise LanguageError(f"regex {pattern!r}: {fault}") from fault


def _listed(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
