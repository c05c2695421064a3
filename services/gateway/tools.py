"""Tools of a chat body, checked, as part of a `ChatInput`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from services.gateway.openai_bodies import ChatCompletionBody
from services.gateway.tool_bodies import NamedTool, Tool
from shared.errors import InvalidRequest

MAX_TOOLS = 256
_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ToolSetting:
    """The fields of `ChatInput` that are about tools."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    choice: Literal["auto", "none", "required"] = "auto"
    name: str = ""
    parallel: bool = True


def tools_of(body: ChatCompletionBody) -> ToolSetting:
    """What the body says about tools.

    Raises:
        InvalidRequest: a tool is wrong, or one is forced that is not there.
    """
    tools, choice = body.tools or [], body.tool_choice
    shown = template_forms(tools)
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        if choice.function.name not in {tool.function.name for tool in tools}:
            raise InvalidRequest(
                f"tool_choice names {choice.function.name[:128]!r}, which is not among the tools",
                param="tool_choice.function.name",
            )
        return ToolSetting(shown, "required", choice.function.name, parallel=False)
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")
    return ToolSetting(shown, choice or "auto", "", parallel)


def template_forms(tools: list[Tool]) -> list[dict[str, Any]]:
    """Tools as the tokenizer and the chat template want them.

    Raises:
        InvalidRequest: too many, or a name is wrong or there twice.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"{len(tools):,} tools are over the limit of {MAX_TOOLS}", param="tools")
    names: set[str] = set()
    for i, tool in enumerate(tools):
        where, name = f"tools[{i}].function.name", tool.function.name
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{where} must be 1 to 128 letters, digits and the characters _ . : -", param=where)
        if name in names:
            raise InvalidRequest(f"{where} {name!r} is there twice: give each function a name of its own", param=where)
        names.add(name)
    return [_template_form(tool) for tool in tools]


def _template_form(tool: Tool) -> dict[str, Any]:
    """In the order of keys that models were trained on, whatever order the client chose."""
    function = tool.function
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    if function.strict is not None:
        shown["strict"] = function.strict
    return {"type": "function", "function": shown}
