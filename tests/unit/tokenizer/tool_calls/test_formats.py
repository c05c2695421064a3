"""What each family's text means, in one piece; `tests/property/test_tool_calls.py` cuts it up."""

from __future__ import annotations

import pytest

from services.tokenizer.tool_calls.call_scanner import CallScanner
from services.tokenizer.tool_calls.events import CallArguments, CallStart
from services.tokenizer.tool_calls.formats import FORMATS, HERMES, LLAMA3, format_of_template
from tests.unit.tokenizer.tool_calls.reading import Read, read

A = ("add", '{"a": 1, "b": [2, "}]"]}')
W = ("get_weather", '{"city": "Par\\"is"}')
CALL_A = '{"name": "add", "arguments": ' + A[1] + "}"
CALL_W = '{"name": "get_weather", "arguments": ' + W[1] + "}"
CASES: dict[str, tuple[str, str, Read]] = {
    # Hermes: JSON in tags
    "one call": ("hermes", f"<tool_call>\n{CALL_A}\n</tool_call>", ("", [A])),
    "no call": ("hermes", "1 < 2 and <tool is not a tag \n", ("1 < 2 and <tool is not a tag \n", [])),
    "text before": ("hermes", f"Let me see.\n\n<tool_call>{CALL_A}</tool_call>", ("Let me see.", [A])),
    "text after": ("hermes", f"<tool_call>{CALL_A}</tool_call>\n\nDone. ", ("\n\nDone. ", [A])),
    "two calls": ("hermes", f"<tool_call>\n{CALL_A}\n</tool_call>\n<tool_call>\n{CALL_W}\n</tool_call>\n",
                  ("", [A, W])),
    "a list in a tag": ("hermes", f"<tool_call>[{CALL_A}, {CALL_W}]</tool_call>!", ("!", [A, W])),
    "objects in a tag": ("hermes", f"<tool_call>{CALL_A}\n{CALL_W}</tool_call>", ("", [A, W])),
    "a brace too many": ("hermes", f"<tool_call>{CALL_A}}}</tool_call>", ("", [A])),
    "a brace missing": ("hermes", f"<tool_call>{CALL_A[:-1]}</tool_call> ok", (" ok", [A])),
    "arguments first": ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
                        ("", [("f", '{"a": 1}')])),
    "arguments as text": ("hermes", r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>',
                          ("", [("f", '{"a": 1}')])),
    "no arguments": ("hermes", '<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
    "null arguments": ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', ("", [("f", "{}")])),
    "other keys": ("hermes", '<tool_call>{"id": 7, "name": "f", "why": ["x"], "arguments": {}}</tool_call>',
                   ("", [("f", "{}")])),
    "an escaped name": ("hermes", '<tool_call>{"name": "\\u0061dd", "arguments": {}}</tool_call>',
                        ("", [("add", "{}")])),
    "a tag in an argument": ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
                             ("", [("f", '{"x": "</tool_call>"}')])),
    "cut in arguments": ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "a', ("", [("f", '{"x": "a')])),
    "cut in the end tag": ("hermes", f"<tool_call>{CALL_A}</tool", ("", [A])),
    "cut before the name": ("hermes", '<tool_call>\n{"name": "ad', ('<tool_call>\n{"name": "ad', [])),
    "cut in the tag": ("hermes", "so <tool_ca", ("so <tool_ca", [])),
    "an empty tag": ("hermes", "<tool_call></tool_call>", ("<tool_call></tool_call>", [])),
    "no JSON": ("hermes", "a <tool_call>\nfoo(1)\n</tool_call>", ("a <tool_call>\nfoo(1)\n</tool_call>", [])),
    "no quotes": ("hermes", "<tool_call>{name: f}</tool_call>", ("<tool_call>{name: f}</tool_call>", [])),
    "single quotes": ("hermes", "<tool_call>{'name': 'f'}</tool_call>", ("<tool_call>{'name': 'f'}</tool_call>", [])),
    "an unknown function": ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
                            ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', [])),
    "arguments are a list": ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
                             ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [])),
    "a name that is a number": ("hermes", '<tool_call>{"name": 5}</tool_call>',
                                ('<tool_call>{"name": 5}</tool_call>', [])),
    "a value that is nothing": ("hermes", "<tool_call>{\"name\": 'f'}", ("<tool_call>{\"name\": 'f'}", [])),
    "arguments twice": ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}, "arguments": {}}</tool_call>',
                        (": {}}</tool_call>", [("f", '{"a": 1}')])),
    "a call after a broken one": ("hermes", f"<tool_call>oops</tool_call> <tool_call>{CALL_A}</tool_call>",
                                  ("<tool_call>oops</tool_call>", [A])),
    "a call inside a broken one": ("hermes", f"<tool_call>oops <tool_call>{CALL_A}</tool_call>",
                                   ("<tool_call>oops", [A])),
    "brackets that do not match": ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1}}</tool_call>x',
                                   ("x", [("f", '{"a": [1')])),
    # Llama 3: bare JSON
    "bare JSON": ("llama3", CALL_A.replace("arguments", "parameters"), ("", [A])),
    "behind a python tag": ("llama3", f"<|python_tag|>{CALL_A}", ("", [A])),
    "separated": ("llama3", f"{CALL_A}; {CALL_W}", ("", [A, W])),
    "with a type": ("llama3", '{"type": "function", "name": "f", "parameters": {}}', ("", [("f", "{}")])),
    "in a line of its own": ("llama3", f"I will add.\n {CALL_A}\nThat is it.", ("I will add.That is it.", [A])),
    "JSON that is no call": ("llama3", '{"name": "Alice", "age": 3}', ('{"name": "Alice", "age": 3}', [])),
    "JSON with another key": ("llama3", '{"title": "x"}', ('{"title": "x"}', [])),
    "JSON within a line": ("llama3", f"Write {CALL_A}", (f"Write {CALL_A}", [])),
    "code": ("llama3", "int f() {\n  return 1;\n}\n", ("int f() {\n  return 1;\n}\n", [])),
    "a built-in tool": ("llama3", "<|python_tag|>search.call(q='x')", ("<|python_tag|>search.call(q='x')", [])),
    # Mistral
    "a list behind a marker": ("mistral", f"[TOOL_CALLS] [{CALL_A}, {CALL_W}]", ("", [A, W])),
    "no space": ("mistral", f"Sure.[TOOL_CALLS][{CALL_A}]", ("Sure.", [A])),
    "an object behind a marker": ("mistral", f"[TOOL_CALLS]{CALL_A}", ("", [A])),
    "names": ("mistral", f"[TOOL_CALLS]add[ARGS]{A[1]}[TOOL_CALLS]get_weather[ARGS]{W[1]}", ("", [A, W])),
    "names with ids": ("mistral", f"[TOOL_CALLS]add[CALL_ID]abc123def[ARGS]{A[1]}", ("", [A])),
    "a name and no mark": ("mistral", f"[TOOL_CALLS]add{A[1]} x", ("x", [A])),
    "an unknown name": ("mistral", "[TOOL_CALLS]rm[ARGS]{}", ("[TOOL_CALLS]rm[ARGS]{}", [])),
    "an unknown mark": ("mistral", "[TOOL_CALLS]f[ARG]{}", ("[TOOL_CALLS]f[ARG]{}", [])),
    "an empty list": ("mistral", "[TOOL_CALLS] []", ("[TOOL_CALLS] []", [])),
    # Qwen3-Coder
    "XML": ("qwen3_coder", "Ok.\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\n2 <b>\n\n"
            "</parameter>\n</function>\n</tool_call>", ("Ok.", [("add", '{"a": 1, "s": "2 <b>\\n"}')])),
    "XML of all types": (
        "qwen3_coder", "<tool_call><function=add><parameter=b>[1, {}]</parameter><parameter=flag>True</parameter>"
        "<parameter=size>2</parameter><parameter=half>3</parameter><parameter=a>no number</parameter>"
        "<parameter=new>7</parameter><parameter=ref>{}</parameter></function></tool_call>",
        ("", [("add", '{"b": [1,{}], "flag": true, "size": 2, "half": 3, "a": "no number", "new": "7", "ref": {}}')]),
    ),
    "XML without arguments": ("qwen3_coder", "<tool_call>\n<function=f>\n</function>\n</tool_call>\n<tool_call>\n"
                              "<function=f></function></tool_call>", ("", [("f", "{}"), ("f", "{}")])),
    "XML of an unknown function": ("qwen3_coder", "<tool_call><function=rm></function></tool_call>",
                                   ("<tool_call><function=rm></function></tool_call>", [])),
    "XML that breaks off": ("qwen3_coder", "<tool_call><function=f><parameter=x>1</parameter>oops</tool_call>",
                            ("oops</tool_call>", [("f", '{"x": "1"')])),
    "XML that is cut": ("qwen3_coder", "<tool_call><function=f><parameter=x>1</para", ("", [("f", "")])),
    # Nemotron
    "a list in tags": ("nemotron", f"<TOOLCALL>[{CALL_A}, {CALL_W}]</TOOLCALL>", ("", [A, W])),
    # Python
    "keywords": ("pythonic", "[f(a=1, b='x', c=[True, None], d={'k': -1.5})]",
                 ("", [("f", '{"a":1,"b":"x","c":[true,null],"d":{"k":-1.5}}')])),
    "several": ("pythonic", "[f(), add(a=1)]", ("", [("f", "{}"), ("add", '{"a":1}')])),
    "between marks": ("pythonic", "<|tool_call_start|>[f(x=true)]<|tool_call_end|>ok", ("ok", [("f", '{"x":true}')])),
    "quotes and brackets": ("pythonic", "[f(a=\"it's (\\\"\\\")\", b='[')]",
                            ("", [("f", '{"a":"it\'s (\\"\\")","b":"["}')])),
    "a list that is none": ("pythonic", "[1, 2]", ("[1, 2]", [])),
    "positional": ("pythonic", "[f(1)]", ("[f(1)]", [])),
    "an expression": ("pythonic", "[f(a=g(1))]", ("[f(a=g(1))]", [])),
    "cut": ("pythonic", "[f(a='x", ("[f(a='x", [])),
    "an unknown one": ("pythonic", "[rm(a=1)]", ("[rm(a=1)]", [])),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_text_is_split_into_content_and_calls(case: str) -> None:
    name, text, expected = CASES[case]
    assert read(FORMATS[name], [text]) == expected


def test_only_the_first_call_is_read_where_one_is_allowed() -> None:
    assert read(HERMES, [f"<tool_call>{CALL_A}</tool_call><tool_call>{CALL_W}</tool_call>x"], only_one=True) == (
        "", [A],
    )  # fmt: skip
    assert read(LLAMA3, [f"{CALL_A}; {CALL_W}"], only_one=True) == ("", [A])


def test_arguments_come_as_they_are_written_and_content_at_once() -> None:
    scanner = CallScanner(HERMES.syntax, {"f": {}}, only_one=False)
    assert scanner.add("Hi <") == ["Hi"]
    assert scanner.add("b") == [" <b"]
    assert scanner.add('<tool_call>{"name": "f", "argu') == []
    assert scanner.add('ments": {"a') == [CallStart("f"), CallArguments('{"a')]
    assert scanner.add('": 1') == [CallArguments('": 1')]
    assert scanner.add("}}") == [CallArguments("}")]


TEMPLATES = {
    "<tool_call>\n{\"name\": <function-name>": "hermes",
    "[TOOL_CALLS] [": "mistral",
    "[TOOL_CALLS]{{ name }}[ARGS]": "mistral-named",
    "<TOOLCALL>[": "nemotron",
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.': "llama3",
    "<|python_tag|>": "llama3",
    "[func_name1(params_name1=params_value1)]": "pythonic",
    "<|tool_call_start|>": "pythonic",
    "<tool_call>\n<function=example_function_name>": "qwen3_coder",
}  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES)
def test_the_template_tells_the_format(source: str) -> None:
    form = format_of_template(source)
    assert form is not None
    assert form.name == TEMPLATES[source]


def test_a_template_of_an_unknown_format_tells_none() -> None:
    assert format_of_template("<｜tool▁calls▁begin｜>") is None
    assert format_of_template("{{ messages }}") is None
