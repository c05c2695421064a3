"""Tools for chat templates that know none: told in the system message, calls and results written into the turns.

The words are those of Hermes' format, which the answer is then read in.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from shared.messages import ChatInput

_HEAD = """# Tools

You may call one or more functions to help with the user's request. These are the functions, as JSON in <tools></tools>:
<tools>"""
_FOOT = """</tools>

To call a function, write a JSON object with its name and its arguments within <tool_call></tool_call>:
<tool_call>
{"name": <function name>, "arguments": <arguments as a JSON object>}
</tool_call>"""


def spelled_out(chat: ChatInput) -> ChatInput:
    """The same conversation without tools, tool calls and tool messages as such."""
    messages = _plain_turns(chat.messages)
    if chat.tools:
        messages = _with_system_text(messages, _tools_text(chat.tools))
    return dataclasses.replace(chat, messages=messages, tools=[])


def _tools_text(tools: list[dict[str, Any]]) -> str:
    return "\n".join([_HEAD, *(json.dumps(tool, ensure_ascii=False) for tool in tools), _FOOT])


def _with_system_text(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if not messages or messages[0].get("role") not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    return [{**messages[0], "content": _joined(messages[0].get("content"), text)}, *messages[1:]]


def _plain_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls become content, results a user's turn; results that follow each other become one turn."""
    out: list[dict[str, Any]] = []
    in_results = False
    for message in messages:
        is_result = message.get("role") == "tool"
        if is_result:
            content = _joined("<tool_response>", _joined(message.get("content"), "</tool_response>", "\n"), "\n")
            if in_results:
                out[-1]["content"] = _joined(out[-1]["content"], content, "\n")
            else:
                out.append({"role": "user", "content": content})
        elif calls := message.get("tool_calls"):
            plain = {k: v for k, v in message.items() if k != "tool_calls"}
            out.append({**plain, "content": _joined(message.get("content"), _calls_text(calls), "\n")})
        else:
            out.append(message)
        in_results = is_result
    return out


def _calls_text(calls: Any) -> str:
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return "\n".join(_call_text(f) for f in functions if isinstance(f, dict))


def _call_text(function: dict[str, Any]) -> str:
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {_arguments(function)}}}\n</tool_call>'


def _arguments(function: dict[str, Any]) -> str:
    arguments = function.get("arguments")
    return arguments or "{}" if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)


def _joined(before: Any, after: Any, glue: str = "\n\n") -> Any:
    """Two contents as one: strings joined by `glue`, parts put behind each other."""
    if before in (None, ""):
        return after
    if isinstance(before, str) and isinstance(after, str):
        return before + glue + after
    return [*_parts(before), *_parts(after)]


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
