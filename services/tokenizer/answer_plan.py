"""[walk 2] What a request's tools and grammar mean: for its prompt, for the scheduler's grammar, for its answer.

`Answers` knows the model: its template, the family of its tool calls, how it marks what it thinks. It makes one
`AnswerPlan` per request, which is asked about the prompt that became of it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import orjson

from services.tokenizer.answer import AnswerReader
from services.tokenizer.chat_template import ChatTemplate
from services.tokenizer.config import ReasoningParser, ToolCallParser
from services.tokenizer.grammar_format import as_format
from services.tokenizer.reasoning import FORMATS as REASONING_FORMATS
from services.tokenizer.reasoning import Phase, ReasoningFormat, ReasoningReader
from services.tokenizer.reasoning import format_of_template as reasoning_of_template
from services.tokenizer.template_files import ChatTemplates
from services.tokenizer.tool_calls import formats
from services.tokenizer.tool_calls.argument_grammar import Format, either
from services.tokenizer.tool_calls.call_grammar import Function, forced_calls, functions_of, possible_calls
from services.tokenizer.tool_calls.call_scanner import CallScanner
from services.tokenizer.tool_calls.formats import CallFormat
from services.tokenizer.tool_calls.tool_prompt import spelled_out
from shared import messages as m
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec
from shared.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """Of one request. Immutable."""

    grammar: GrammarSpec | None = None
    """What the request asked for."""
    calls: CallFormat | None = None
    """None: calls are not looked for."""
    functions: tuple[Function, ...] = ()
    """That may be called."""
    required: bool = False
    only_one: bool = False
    reasoning: ReasoningFormat | None = None
    separate: bool = True
    max_whitespace: int = 0
    """Of the grammar, `jump_forward` too."""
    jump_forward: bool = True
    kept_ids: frozenset[int] = frozenset()
    """Special tokens that reading the answer needs."""

    def full_grammar(self, prompt: str) -> GrammarSpec | None:
        """The grammar of the answer to a prompt, calls and reasoning included.

        Raises:
            InvalidRequest: no grammar says that.
        """
        wanted = self._answer_format()
        phase = self._phase(prompt)
        if wanted is None and (self.grammar is None or phase == "over"):
            return self.grammar
        if wanted is None:
            assert self.grammar is not None, "there is something to put behind the reasoning"
            wanted = as_format(self.grammar)
        if phase != "over":
            wanted = self._behind_reasoning(wanted, phase)
        source = orjson.dumps({"type": "structural_tag", "format": wanted}).decode()
        spec = GrammarSpec("structural_tag", source, self.max_whitespace, self.jump_forward)
        try:
            spec.check()
        except InvalidRequest as fault:
            raise InvalidRequest(fault.message, param=self.grammar_param()) from fault
        return spec

    def grammar_param(self) -> str:
        """The request's field that the grammar is about."""
        return "tools" if self.grammar is None or self.required else self.grammar.kind

    def reader(self, prompt: str) -> AnswerReader | None:
        """What reads the answer to a prompt; None when it is plain text."""
        thought = None
        if self.separate and self.reasoning is not None:
            thought = ReasoningReader(self.reasoning, self._phase(prompt))
        scanner = None
        if self.calls is not None:
            functions = {f.name: f.parameters for f in self.functions}
            scanner = CallScanner(self.calls.syntax, functions, only_one=self.only_one)
        if thought is None and scanner is None:
            return None
        return AnswerReader(thought, scanner, (self.calls or formats.HERMES).new_id)

    def _phase(self, prompt: str) -> Phase:
        return "over" if self.reasoning is None else self.reasoning.phase(prompt)

    def _answer_format(self) -> Format | None:
        """The format that the tools ask for, with the request's grammar beside it; None when they ask for nothing."""
        if self.calls is None or not (self.required or self.grammar is not None or self._any_strict()):
            return None
        frame, syntax = self.calls.frame, self.calls.syntax
        if self.required:
            return forced_calls(frame, self.functions, only_one=self.only_one)
        if self.grammar is not None:
            return either([forced_calls(frame, self.functions, only_one=self.only_one), as_format(self.grammar)])
        marker = "" if syntax.bare else syntax.begins[0]
        if not (marker or frame.head[0]):
            return None  # nothing tells the beginning of a call from text
        return possible_calls(frame, marker, self.functions, only_one=self.only_one)

    def _any_strict(self) -> bool:
        return any(f.strict for f in self.functions)

    def _behind_reasoning(self, wanted: Format, phase: Phase) -> Format:
        assert self.reasoning is not None, "the phase says that there may be reasoning"
        begin, end = self.reasoning.begin, self.reasoning.end
        thought: Format = {
            "type": "sequence",
            "elements": [
                {"type": "tag", "begin": "" if phase == "open" else begin, "content": {"type": "any_text"}, "end": end},
                {"type": "regex", "pattern": "\\n{0,2}"},
            ],
        }
        if phase == "possible":
            thought = {"type": "optional", "content": thought}
        return {"type": "sequence", "elements": [thought, wanted]}


class Answers:
    """Makes plans. Lives as long as the process."""

    def __init__(
        self, vocabulary: Vocabulary, templates: ChatTemplates, tool_call_parser: ToolCallParser,
        reasoning_parser: ReasoningParser,
    ) -> None:  # fmt: skip
        self._vocabulary, self._templates = vocabulary, templates
        self._tool_call_parser, self._reasoning_parser = tool_call_parser, reasoning_parser

    def plan(self, request: m.GenerateRequest) -> AnswerPlan:
        """What a request means.

        Raises:
            InvalidRequest: its tools are wrong, or the model cannot do what it asks for.
        """
        chat = request.chat
        if chat is None:
            return AnswerPlan(grammar=request.grammar)
        asked = request.grammar or GrammarSpec("structural_tag", "", chat.max_whitespace, chat.jump_forward)
        functions = self._functions(chat)
        template = self._templates.of(_visible(chat))
        form = self._format(template, chat) if functions else None
        thinks = self._reasoning(template)
        special = [] if form is None else [mark for mark in _markers(form) if self._is_special(mark)]
        if thinks is not None:
            special += [mark for mark in (thinks.begin, thinks.end) if self._is_special(mark)]
        return AnswerPlan(
            grammar=request.grammar,
            calls=form,
            functions=tuple(f for f in functions if chat.tool_name in ("", f.name)),
            required=chat.tool_choice == "required",
            only_one=bool(chat.tool_name) or not chat.parallel_tool_calls,
            reasoning=thinks,
            separate=chat.separate_reasoning,
            max_whitespace=asked.max_whitespace,
            jump_forward=asked.jump_forward,
            kept_ids=self._vocabulary.special_ids & {self._vocabulary.tokenizer.token_to_id(mark) for mark in special},
        )

    def render(self, chat: m.ChatInput) -> str:
        """The prompt of a conversation. Safe and useful to call in a thread.

        Raises:
            InvalidRequest, ContextLengthExceeded: see `ChatTemplates.render`.
        """
        chat = _visible(chat)
        template = self._templates.of(chat)
        return self._templates.render(chat if template is None or template.takes_tools else spelled_out(chat))

    def _functions(self, chat: m.ChatInput) -> list[Function]:
        functions = functions_of(chat.tools)
        if chat.tool_choice == "none":
            return []
        if chat.tool_choice == "required" and not functions:
            raise InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")
        if chat.tool_name and chat.tool_name not in {f.name for f in functions}:
            raise InvalidRequest(
                f"tool_choice names {chat.tool_name!r}, which is not among the tools", param="tool_choice"
            )
        return functions

    def _format(self, template: ChatTemplate | None, chat: m.ChatInput) -> CallFormat | None:
        """The family of a conversation with tools."""
        if self._tool_call_parser == "none":
            if chat.tool_choice == "required":
                raise InvalidRequest(
                    "calls cannot be forced with --tool-call-parser none: use tool_choice auto", param="tool_choice"
                )
            return None
        if template is None:
            return None  # rendering says that there is none
        if not template.takes_tools:
            return formats.HERMES  # the one that `spelled_out` asks for
        if self._tool_call_parser != "auto":
            return formats.FORMATS[self._tool_call_parser]
        form = formats.format_of_template(template.source)
        if form is None:
            raise InvalidRequest(
                "the model's chat template shows tools in a format that is not known: start the tokenizer with"
                " --tool-call-parser, or with none to get calls as text",
                param="tools",
            )
        return form

    def _reasoning(self, template: ChatTemplate | None) -> ReasoningFormat | None:
        if self._reasoning_parser == "none":
            return None
        if self._reasoning_parser != "auto":
            return REASONING_FORMATS[self._reasoning_parser]
        return None if template is None else reasoning_of_template(template.source)

    def _is_special(self, token: str) -> bool:
        return self._vocabulary.tokenizer.token_to_id(token) in self._vocabulary.special_ids


def _markers(form: CallFormat) -> list[str]:
    syntax = form.syntax
    return [marker for marker in (*syntax.begins, *syntax.inner, syntax.end) if marker]


def _visible(chat: m.ChatInput) -> m.ChatInput:
    tools = [] if chat.tool_choice == "none" else [_without_strict(tool) for tool in chat.tools]
    return dataclasses.replace(chat, tools=tools)


def _without_strict(tool: dict[str, Any]) -> dict[str, Any]:
    """Templates print what they get."""
    function = tool.get("function")
    if not isinstance(function, dict) or "strict" not in function:
        return tool
    return {**tool, "function": {k: v for k, v in function.items() if k != "strict"}}
