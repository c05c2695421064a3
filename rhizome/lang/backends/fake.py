"""A model with scripted answers, for tests and for programs without a server. Counts and remembers every call.

It behaves like a model: what the script gives is the text that would follow, without end; stop strings and token
limits cut it. A token is a word with the space before it, a line break, or one other character.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rhizome.lang.backends.base import Backend, Completion, Delta, Usage
from rhizome.lang.chat_template import ChatTemplate, get_chat_template
from rhizome.lang.choices import ChoicesDecision, ChoicesSamplingMethod, Scores
from rhizome.lang.conversation import Prompt
from rhizome.lang.errors import BackendError
from rhizome.lang.loops import Signal
from rhizome.lang.sampling import SamplingParams
from rhizome.lang.speculation import first_stop

Script = Callable[[Prompt, SamplingParams], str]
Scorer = Callable[[str, str], list[float]]
_TOKEN = re.compile(r" ?\w+|\n|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it arrived."""

    kind: str
    prompt: Prompt
    params: SamplingParams | None = None


class FakeBackend(Backend):
    """Args:
    answers: a function of prompt and parameters; or a list, one entry per call; or a dict of prompt endings (the
        longest that fits) to answers. An answer that is an exception is raised.
    scores: log probabilities per token of a choice after a text; by default the shorter the likelier.
    chat: answers messages and cannot go on with a begun turn, like most chat APIs; `prefill` lets it.
    latency_s: seconds from call to answer.
    """

    def __init__(
        self,
        answers: Script | Sequence[Any] | dict[str, Any],
        *,
        scores: Scorer | None = None,
        chat: bool = False,
        prefill: bool | None = None,
        chat_template: str | None = None,
        latency_s: float = 0.0,
        tells_tokens: bool = True,
    ) -> None:
        self.is_chat_model = chat
        self.can_prefill = not chat if prefill is None else prefill
        self.prefix_hints = True
        self.calls: list[Call] = []
        self.cancelled = 0
        self.running = 0
        self.max_running = 0
        self._answers, self._scores, self._latency_s = answers, scores or _short_is_likely, latency_s
        self._template = get_chat_template(chat_template or ("messages" if chat else "default"))
        self._tells_tokens = tells_tokens
        self._next = 0
        self._changed = Signal()

    @property
    def prefixes(self) -> list[str]:
        """Prefixes sent ahead."""
        return [call.prompt.text for call in self.calls if call.kind == "cache_prefix"]

    def count(self, kind: str = "generate") -> int:
        return sum(call.kind == kind for call in self.calls)

    async def until_running(self, count: int) -> None:
        """Return when so many calls wait for their answer; on the loop that they run on."""
        while self.running != count:
            await self._changed.wait()

    async def chat_template(self) -> ChatTemplate:
        return self._template

    async def generate(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> list[Completion]:
        self.calls.append(Call("generate", prompt, params))
        await self._wait()
        return [self._completion(prompt, params) for _ in range(params.n or 1)]

    async def stream(
        self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False
    ) -> AsyncIterator[Delta]:
        self.calls.append(Call("generate", prompt, params))
        await self._wait()
        whole = self._completion(prompt, params)
        tokens = tokenize(whole.text)
        for token in tokens:
            yield Delta(token, tokens=[token] if self._tells_tokens else None)
            await asyncio.sleep(0)
        yield Delta("", whole.meta, whole.usage, whole.finish)

    async def select(
        self, prompt: Prompt, choices: Sequence[str], method: ChoicesSamplingMethod
    ) -> tuple[ChoicesDecision, Usage]:
        self.calls.append(Call("select", prompt))
        await self._wait()
        with_prompt = [[[p, 0, None] for p in self._scores(prompt.text, choice)] for choice in choices]
        alone = [[[p, 0, None] for p in self._scores("", choice)] for choice in choices]
        usage = Usage(len(tokenize(prompt.text)), 0, 0)
        return method(Scores(list(choices), with_prompt, alone)), usage

    async def cache_prefix(self, prompt: Prompt) -> None:
        self.calls.append(Call("cache_prefix", prompt))
        await self._wait()

    async def flush_cache(self) -> Any:
        self.calls.append(Call("flush_cache", Prompt("")))
        return {"released_pages": 0}

    async def get_server_info(self) -> Any:
        return {"backend": "fake", "calls": len(self.calls)}

    async def _wait(self) -> None:
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        self._changed.fire()
        try:
            await asyncio.sleep(self._latency_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self._changed.fire()

    def _completion(self, prompt: Prompt, params: SamplingParams) -> Completion:
        text = self._answer(prompt, params)
        stop, at = first_stop(text, params.stops)
        tokens = tokenize(text if stop is None else text[:at])
        finish = "stop"
        if len(tokens) > params.limit:
            tokens, finish, stop = tokens[: params.limit], "length", None
        reason: dict[str, Any] = {"type": finish, **({"matched": stop} if stop else {})}
        usage = Usage(len(tokenize(prompt.text)), len(tokens), 0)
        meta = {
            "finish_reason": reason, "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
            "cached_tokens": 0,
        }  # fmt: skip
        return Completion("".join(tokens), meta, usage, finish, tokens if self._tells_tokens else None)

    def _answer(self, prompt: Prompt, params: SamplingParams) -> str:
        answers = self._answers
        if callable(answers):
            answer: Any = answers(prompt, params)
        elif isinstance(answers, dict):
            text = prompt.text if not self.is_chat_model else _last_text(prompt)
            ends = [end for end in answers if text.endswith(end)]
            if not ends:
                raise BackendError(f"the script has no answer to ...{text[-60:]!r}", 400)
            answer = answers[max(ends, key=len)]
        else:
            if self._next >= len(answers):
                raise BackendError(f"the script has {len(answers)} answers and was asked once more", 400)
            answer = answers[self._next]
            self._next += 1
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)


def tokenize(text: str) -> list[str]:
    """The fake model's tokens."""
    return _TOKEN.findall(text)


def _last_text(prompt: Prompt) -> str:
    if prompt.turn_text:
        return prompt.turn_text
    content = prompt.messages[-1]["content"] if prompt.messages else prompt.text
    return content if isinstance(content, str) else content[-1]["text"]


def _short_is_likely(_: str, choice: str) -> list[float]:
    return [-float(len(choice))]
