"""What the language needs from a server.

Every call is a coroutine on the loop of the program that makes it; a backend may be used from several loops and by
thousands of programs at a time, so it keeps no state of a program. Cancelling a call stops it on the server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhizome.lang.chat_template import TEMPLATES, ChatTemplate
from rhizome.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from rhizome.lang.conversation import Prompt
from rhizome.lang.errors import BackendError, Unsupported
from rhizome.lang.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated text. `finish` is "stop" (the model or a stop string ended it) or "length"."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()
    finish: str = "stop"
    tokens: list[str] | None = None
    """The text in tokens, where it was asked for and the server tells."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed text. Only the last one has `usage` and `finish`."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None
    finish: str | None = None
    tokens: list[str] | None = None


class Backend:
    """Base of all backends: what is not overridden is not supported and says so."""

    is_chat_model = False
    """Takes messages instead of text."""
    can_prefill = True
    """Goes on with a text that has begun, an assistant's open turn included."""
    prefix_hints = False
    """Profits from `cache_prefix`."""

    async def chat_template(self) -> ChatTemplate:
        """Markup of the roles in `Prompt.text`."""
        return TEMPLATES["messages" if self.is_chat_model else "default"]

    async def generate(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> list[Completion]:
        """`params.n` completions of the prompt (one by default). `params` are resolved.

        Raises:
            BackendError, Unsupported.
        """
        raise Unsupported(f"{type(self).__name__} does not generate")

    def stream(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> AsyncIterator[Delta]:
        """The same for one completion, in pieces."""
        raise Unsupported(f"{type(self).__name__} does not stream")

    async def select(
        self, prompt: Prompt, choices: Sequence[str], method: ChoicesSamplingMethod
    ) -> tuple[ChoicesDecision, Usage]:
        raise Unsupported(f"{type(self).__name__} has no select")

    async def cache_prefix(self, prompt: Prompt) -> None:
        """Compute a prompt that others will begin with."""

    async def flush_cache(self) -> Any:
        raise Unsupported(f"{type(self).__name__} has no cache to flush")

    async def get_server_info(self) -> Any:
        raise Unsupported(f"{type(self).__name__} tells nothing about its server")

    async def aclose(self) -> None:
        """Close the connections of the running loop."""


def single(completions: Sequence[Completion]) -> Completion:
    """The only completion of a call that asked for one.

    Raises:
        BackendError: the server gave another number.
    """
    if len(completions) != 1:
        raise BackendError(f"the server gave {len(completions)} completions for one")
    return completions[0]
