"""What a program cost: calls made and saved, tokens paid and wasted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rhizome.lang.backends.base import Usage


@dataclass(slots=True)
class Report:
    """Sums over one program run, forks included. Written on the program's loop."""

    calls: int = 0
    """Generations and selections asked of the backend."""
    hints: int = 0
    """Prefixes sent ahead."""
    calls_saved: int = 0
    """Generations answered from a guess."""
    retries: int = 0
    """Calls made again because a guess or a pattern did not match."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Paid for, whether used or not."""
    cached_tokens: int = 0
    tokens_wasted: int = 0
    """Generated and dropped."""

    def add(self, usage: Usage) -> None:
        """One more call."""
        self.calls += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
