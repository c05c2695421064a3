"""Counters of a scheduler since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Totals:
    """Mutated by the engines; read by metrics and `/server_info`."""

    requests: int = 0
    retractions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    forced_tokens: int = 0
    """Of these, what grammars forced and nobody sampled."""
    finished: int = 0
    aborted: int = 0

    def admitted(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A request was started for the first time."""
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
