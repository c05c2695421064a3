"""What one generation has given so far: the deltas of a stream added up. Used where text is not passed on at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from services.gateway.call import Call
from services.gateway.responses import (
    AssistantMessage,
    ExtendedMessage,
    FinishReason,
    FunctionCall,
    ToolCall,
)
from shared import messages as m
from shared.errors import Aborted, RhizomeError


@dataclass(slots=True)
class Result:
    """Sum of the deltas of one generation."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[m.ToolCallDelta] = field(default_factory=list)
    """One per call, added up."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[m.TokenLogprob] = field(default_factory=list)
    prompt: m.PromptInfo | None = None
    completion_tokens: int = 0
    last: m.TextDelta | None = None
    """The delta that ended it."""

    def add(self, delta: m.TextDelta) -> None:
        self.text += delta.text
        self.reasoning += delta.reasoning
        for call in delta.tool_calls or ():
            self._add_call(call)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.completion_tokens = delta.completion_tokens
        if delta.prompt is not None:
            self.prompt = delta.prompt
        if delta.finish_reason is not None:
            self.last = delta

    def message(self) -> AssistantMessage | ExtendedMessage:
        """The answer of a conversation. Its content is null when there are calls instead."""
        if not self.reasoning and not self.tool_calls:
            return AssistantMessage(self.text)
        calls = [ToolCall(call.id, FunctionCall(call.name, call.arguments)) for call in self.tool_calls]
        content = None if calls and not self.text else self.text
        return ExtendedMessage(content, self.reasoning or None, calls or None)

    def _add_call(self, gain: m.ToolCallDelta) -> None:
        if gain.index == len(self.tool_calls):
            self.tool_calls.append(gain)
        else:
            call = self.tool_calls[gain.index]
            self.tool_calls[gain.index] = dataclasses.replace(call, arguments=call.arguments + gain.arguments)

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended, in OpenAI's words.

        Raises:
            Aborted: it was stopped from outside.
        """
        assert self.last is not None, "asked before the generation ended"
        return openai_finish(self.last)


async def collect(call: Call) -> list[Result]:
    """Wait until every generation of a call has ended."""
    results = [Result() for _ in call.streams]
    while batch := await call.take():
        for index, delta in batch:
            results[index].add(delta)
    return results


def openai_finish(delta: m.TextDelta) -> FinishReason:
    """`finish_reason` of a last delta.

    Raises:
        Aborted: the generation was stopped from outside.
    """
    if delta.finish_reason == "stop":
        return "stop"
    if delta.finish_reason == "length":
        return "length"
    if delta.finish_reason == "tool_calls":
        return "tool_calls"
    if delta.finish_reason == "abort":
        raise Aborted("the generation was aborted")
    raise RhizomeError(f"a generation cannot end with {delta.finish_reason!r}")
