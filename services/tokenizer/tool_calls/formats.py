"""The families of tool-call formats, by the names that `--tool-call-parser` takes, and which one a template means."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass
from typing import Literal

from services.tokenizer.tool_calls.call_scanner import CallSyntax
from services.tokenizer.tool_calls.events import CallReader, Functions
from services.tokenizer.tool_calls.json_call import JsonCall
from services.tokenizer.tool_calls.named_call import ARGS, CALL_ID, NamedCall
from services.tokenizer.tool_calls.python_call import PythonCall
from services.tokenizer.tool_calls.xml_call import XmlCall

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Frame:
    """How forced calls are written: `before`, the calls with `between` in between, `after`.

    The marker of the format, where there is one, is the beginning of `before` or else of each call.
    """

    head: tuple[str, str]
    """Text of one call before and after the function's name; the arguments follow."""
    tail: str
    """Text of one call behind the arguments."""
    between: str
    before: str = ""
    after: str = ""
    arguments: Literal["json", "tags", "keywords"] = "json"
    """One JSON object, a tag for each, or Python's keyword arguments."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One family."""

    name: str
    syntax: CallSyntax
    frame: Frame
    id_chars: int = 0
    """Length of ids of calls that are letters and digits only; 0 = `call_` and 24 of them."""

    def new_id(self) -> str:
        """An id for one call."""
        if self.id_chars:
            return "".join(secrets.choice(_LETTERS) for _ in range(self.id_chars))
        return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))


def _json(char: str, functions: Functions, first: bool) -> CallReader | None:
    return JsonCall(functions) if char == "{" else None


def _json_or_named(char: str, functions: Functions, first: bool) -> CallReader | None:
    if char == "{":
        return JsonCall(functions)
    return NamedCall(functions) if first and _begins_name(char) else None


def _python(char: str, functions: Functions, first: bool) -> CallReader | None:
    return PythonCall(functions) if _begins_name(char) else None


def _xml(char: str, functions: Functions, first: bool) -> CallReader | None:
    return XmlCall(functions) if char == "<" else None


def _begins_name(char: str) -> bool:
    return char == "_" or (char.isascii() and char.isalnum())


def _in_tags(name: str, begin: str, end: str, inside: str = "\n") -> CallFormat:
    """JSON between tags, one call each."""
    head = (f'{begin}{inside}{{"name": "', '", "arguments": ')
    return CallFormat(name, CallSyntax((begin,), end, "", _json), Frame(head, f"}}{inside}{end}", "\n"))


HERMES = _in_tags("hermes", "<tool_call>", "</tool_call>")
NEMOTRON = CallFormat(
    "nemotron",
    CallSyntax(("<TOOLCALL>",), "</TOOLCALL>", "", _json),
    Frame(('{"name": "', '", "arguments": '), "}", ", ", "<TOOLCALL>[", "]</TOOLCALL>"),
)
LLAMA3 = CallFormat(
    "llama3",
    CallSyntax(("<|python_tag|>",), "", "{", _json),
    Frame(('{"name": "', '", "parameters": '), "}", "; "),
)
MISTRAL = CallFormat(
    "mistral",
    CallSyntax(("[TOOL_CALLS]",), "", "", _json_or_named, (ARGS, CALL_ID)),
    Frame(('{"name": "', '", "arguments": '), "}", ", ", "[TOOL_CALLS] [", "]"),
    id_chars=9,
)
MISTRAL_NAMED = CallFormat(
    "mistral-named",
    MISTRAL.syntax,
    Frame(("[TOOL_CALLS]", ARGS), "", ""),
    id_chars=9,
)
QWEN3_CODER = CallFormat(
    "qwen3_coder",
    CallSyntax(("<tool_call>",), "</tool_call>", "", _xml),
    Frame(("<tool_call>\n<function=", ">"), "</function>\n</tool_call>", "\n", arguments="tags"),
)
PYTHONIC = CallFormat(
    "pythonic",
    CallSyntax(("<|tool_call_start|>",), "<|tool_call_end|>", "[", _python),
    Frame(("", ""), "", ", ", "[", "]", arguments="keywords"),
)

FORMATS: dict[str, CallFormat] = {
    "hermes": HERMES,
    "qwen": HERMES,
    "qwen25": HERMES,
    "qwen3_coder": QWEN3_CODER,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral-named": MISTRAL_NAMED,
    "nemotron": NEMOTRON,
    "pythonic": PYTHONIC,
}


def format_of_template(source: str) -> CallFormat | None:
    """The format that a chat template which shows tools asks for; None when it is none of these."""
    if "<tool_call>" in source and "<function=" in source:
        return QWEN3_CODER  # the same tags as Hermes' round other calls
    if "[TOOL_CALLS]" in source:
        return MISTRAL_NAMED if "[ARGS]" in source else MISTRAL
    for mark, found in (("<tool_call>", HERMES), ("<TOOLCALL>", NEMOTRON), ("<|tool_call_start|>", PYTHONIC)):
        if mark in source:
            return found
    if '"parameters": dictionary of argument name and its value' in source or "<|python_tag|>" in source:
        return LLAMA3
    if "[func_name1(" in source:
        return PYTHONIC
    return None
