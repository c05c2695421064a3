"""What tools, reasoning and a grammar mean for the prompt, for the grammar and for the answer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tokenizers import AddedToken, Tokenizer

from services.tokenizer.answer_plan import AnswerPlan, Answers
from services.tokenizer.chat_template import ChatTemplate
from services.tokenizer.config import ReasoningParser, ToolCallParser
from services.tokenizer.template_files import ChatTemplates
from shared import messages as m
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec
from tests.unit.scheduler.grammar.tiny import build
from tests.unit.scheduler.grammar.tiny import matches as tiny_matches
from tests.unit.tokenizer import tiny

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}:{{ c.function.arguments.a }}]{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
HERMES, LLAMA = TOOLS + "{# <tool_call> #}" + TURNS, TOOLS + "{# <|python_tag|> #}" + TURNS
MISTRAL, NAMED = TOOLS + "{# [TOOL_CALLS] #}" + TURNS, TOOLS + "{# [TOOL_CALLS]f[ARGS] #}" + TURNS
NEMOTRON, PYTHONIC = TOOLS + "{# <TOOLCALL> #}" + TURNS, TOOLS + "{# [func_name1(a=1)] #}" + TURNS
XML, UNKNOWN = TOOLS + "{# <tool_call><function=f> #}" + TURNS, TOOLS + "{# <tools> #}" + TURNS
THINKS = TURNS + "{# </think> #}"
OPENS = THINKS + "{% if add_generation_prompt and not shut %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
ANSWER = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}
JSON = GrammarSpec("json_schema", orjson.dumps(ANSWER).decode())


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **fields}}


def vocabulary() -> Any:
    copy = Tokenizer.from_str(tiny.byte_level().to_str())
    copy.add_special_tokens(
        [AddedToken(t, special=True) for t in ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<|python_tag|>")]
    )
    return tiny.vocabulary(copy)


def answers(
    template: str | None = HERMES, tools: ToolCallParser = "auto", reasoning: ReasoningParser = "auto"
) -> Answers:
    compiled = None if template is None else ChatTemplate(template, {}, 1_000_000)
    return Answers(vocabulary(), ChatTemplates(compiled), tools, reasoning)


def ask(grammar: GrammarSpec | None = None, **chat: Any) -> m.GenerateRequest:
    conversation = m.ChatInput([{"role": "user", "content": "hi"}], **{"tools": [tool("f"), tool("g")], **chat})
    return m.GenerateRequest("r", "inbox", chat=conversation, grammar=grammar)


def planned(template: str, request: m.GenerateRequest, **parsers: Any) -> tuple[AnswerPlan, str]:
    """The plan of a request and its prompt."""
    model = answers(template, **parsers)
    plan = model.plan(request)
    assert request.chat is not None
    return plan, model.render(request.chat)


def grammar_of(template: str, request: m.GenerateRequest, **parsers: Any) -> GrammarSpec | None:
    plan, prompt = planned(template, request, **parsers)
    return plan.full_grammar(prompt)


def matcher(spec: GrammarSpec | None) -> Any:
    """Whether a text is a whole sentence of a grammar: by the library that defined structural tags."""
    xgrammar = pytest.importorskip("xgrammar")
    vocab = [bytes([b]) for b in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(vocab, vocab_type=xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[256])
    assert spec is not None
    assert spec.kind == "structural_tag"
    compiled = xgrammar.GrammarCompiler(info).compile_structural_tag(spec.source)

    def matches(text: str) -> bool:
        state = xgrammar.GrammarMatcher(compiled)
        return bool(state.accept_string(text)) and bool(state.is_completed())

    return matches


HERMES_F = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
HERMES_G = HERMES_F.replace('"f"', '"g"')
FORCED: dict[str, tuple[str, list[str], list[str]]] = {
    "hermes": (HERMES, [HERMES_F, HERMES_G, f"{HERMES_F}\n{HERMES_G}"],
               ["", "hi", HERMES_F + "x", HERMES_F.replace("1", '"1"'), HERMES_F.replace('"f"', '"h"')]),
    "llama3": (LLAMA, ['{"name": "f", "parameters": {"a":1}}',
                           '{"name": "f", "parameters": {"a":1}}; {"name": "g", "parameters": {"a":2}}'],
               ["", '{"name": "f", "parameters": {"b":1}}']),
    "mistral": (MISTRAL, ['[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]',
                '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"a": 1}}]'],
                ["[TOOL_CALLS] []", "", '{"name": "f", "arguments": {"a": 1}}']),
    "mistral-named": (NAMED, ['[TOOL_CALLS]f[ARGS]{"a": 1}', '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{"a": 2}'],
                      ['f[ARGS]{"a": 1}', '[TOOL_CALLS]f[ARGS]{"a": 1}g[ARGS]{"a": 2}']),
    "nemotron": (NEMOTRON, ['<TOOLCALL>[{"name": "f", "arguments": {"a": 1}}]</TOOLCALL>',
                 '<TOOLCALL>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"a": 1}}]</TOOLCALL>'],
                 ["<TOOLCALL>[]</TOOLCALL>", ""]),
}  # fmt: skip


XML_F = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
FORCED |= {
    "qwen3_coder": (XML, [XML_F, f"{XML_F}\n{XML_F.replace('=f>', '=g>')}"],
                    ["", "hi", XML_F.replace("1", "one"), XML_F.replace("=a>", "=b>"), HERMES_F]),
    "pythonic": (PYTHONIC, ["[f(a=1)]", "[f(a=1), g(a=2)]"], ["", "[]", "f(a=1)", "[f(1)]", '[f(a="x")]', "[h(a=1)]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORCED)
def test_required_calls_are_forced_in_the_models_own_format_and_read_back(name: str) -> None:
    template, good, bad = FORCED[name]
    plan, prompt = planned(template, ask(tool_choice="required"))
    matches = matcher(plan.full_grammar(prompt))
    for text in good:
        assert matches(text), text
        reader = plan.reader(prompt)
        assert reader is not None
        reader.add(text)
        reader.finish()
        content, _, calls = reader.take()
        assert content == ""
        assert [orjson.loads(c.arguments)["a"] for c in calls or ()] in ([1], [1, 1], [1, 2])
        assert all(c.id and c.name in ("f", "g") for c in calls or ())
    assert [text for text in bad if matches(text)] == []


def test_one_call_at_most_and_one_function_only() -> None:
    single = matcher(grammar_of(HERMES, ask(tool_choice="required", parallel_tool_calls=False)))
    assert single(HERMES_F)
    assert not single(f"{HERMES_F}\n{HERMES_G}")
    named = matcher(grammar_of(HERMES, ask(tool_choice="required", tool_name="g")))
    assert named(HERMES_G)
    assert not named(HERMES_F)
    assert not named(f"{HERMES_G}\n{HERMES_G}")


def test_the_schema_binds_a_forced_call_unless_strict_is_false() -> None:
    loose = matcher(grammar_of(HERMES, ask(tool_choice="required", tools=[tool("f", strict=False)])))
    assert loose(HERMES_F.replace('{"a": 1}', '{"z": []}'))
    assert not loose(HERMES_F.replace('{"a": 1}', "[]"))
    none = matcher(grammar_of(HERMES, ask(tool_choice="required", tools=[tool("f", parameters=None)])))
    assert none(HERMES_F.replace('{"a": 1}', "{}"))
    assert not none(HERMES_F)


@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL, NAMED, NEMOTRON, XML])
def test_strict_functions_bind_the_calls_of_an_answer_that_may_have_none(template: str) -> None:
    matches = matcher(grammar_of(template, ask(tools=[tool("f", strict=True), tool("g")])))
    call = FORCED[answers(template).plan(ask()).calls.name][1][0]
    assert matches("Hello")
    assert matches(call)
    assert not matches(call.replace("1", "one"))
    assert grammar_of(template, ask()) is None
    assert grammar_of(template, ask(tools=[tool("f", strict=True)], tool_choice="none")) is None


def test_strict_functions_do_not_keep_a_model_from_calling_whose_calls_begin_as_text_may() -> None:
    assert grammar_of(PYTHONIC, ask(tools=[tool("f", strict=True)])) is None


ARGUMENTS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"}, "kind": {"enum": ["a", "b c"]}, "at": {"$ref": "#/$defs/point"},
        "note": {"type": ["string", "null"], "maxLength": 5},
    },
    "required": ["kind"],
    "$defs": {"point": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}},
}  # fmt: skip


def arguments_read(template: str, text: str, function: dict[str, Any]) -> Any:
    """What a forced call's text says, once it was found to match."""
    request = ask(tools=[function], tool_choice="required", parallel_tool_calls=False)
    plan, prompt = planned(template, request)
    spec = plan.full_grammar(prompt)
    assert matcher(spec)(text), text
    assert spec is not None
    assert tiny_matches(build(spec), text), text
    reader = plan.reader(prompt)
    assert reader is not None
    reader.add(text)
    reader.finish()
    _, _, calls = reader.take()
    assert calls is not None
    return orjson.loads("".join(call.arguments for call in calls))


def test_arguments_in_tags_are_text_or_json_as_their_schemas_say() -> None:
    def call(*arguments: tuple[str, str]) -> str:
        inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments)
        return f"<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>"

    f = tool("f", parameters=ARGUMENTS)
    assert arguments_read(XML, call(("text", "1 < 2\n\nand"), ("kind", "b c"), ("at", "[1,2]")), f) == {
        "text": "1 < 2\n\nand", "kind": "b c", "at": [1, 2],
    }  # fmt: skip
    assert arguments_read(XML, call(("kind", "a")), f) == {"kind": "a"}
    assert arguments_read(XML, call(), tool("f", parameters=None)) == {}
    assert arguments_read(XML, call(("at", "anything")), tool("f", parameters=ARGUMENTS, strict=False))
    matches = matcher(grammar_of(XML, ask(tools=[f], tool_choice="required")))
    for wrong in (call(), call(("kind", "c")), call(("kind", "a"), ("text", "x")), call(("kind", "a"), ("at", "[1]"))):
        assert not matches(wrong)


def test_keyword_arguments_are_json_behind_their_names() -> None:
    f = tool("f", parameters=ARGUMENTS)
    text = '[f(text="q\\"x", kind="a", at=[1,2], note=null)]'
    assert arguments_read(PYTHONIC, text, f) == {"text": 'q"x', "kind": "a", "at": [1, 2], "note": None}
    assert arguments_read(PYTHONIC, '[f(kind="b c", note="n")]', f) == {"kind": "b c", "note": "n"}
    assert arguments_read(PYTHONIC, "[f()]", tool("f", parameters=None)) == {}
    assert arguments_read(PYTHONIC, "[f(note=[])]", tool("f", parameters=ARGUMENTS, strict=False)) == {"note": []}
    matches = matcher(grammar_of(PYTHONIC, ask(tools=[f], tool_choice="required")))
    wrong = ("[f()]", '[f(kind="c")]', "[f(at=[1,2])]", '[f(, kind="a")]', '[f(kind="a"]')
    assert [text for text in wrong if matches(text)] == []


@pytest.mark.parametrize(
    ("template", "properties", "what"),
    [
        (XML, {"p": {"type": "string", "pattern": "^a"}}, "pattern"),
        (PYTHONIC, {"no name": {}}, "no name in Python"),
        (XML, 3, "an object of schemas"),
        (PYTHONIC, [], "an object of schemas"),
    ],
)
def test_what_a_format_of_calls_cannot_hold_is_refused(template: str, properties: Any, what: str) -> None:
    function = tool("f", parameters={"type": "object", "properties": properties})
    with pytest.raises(InvalidRequest, match=what):
        grammar_of(template, ask(tools=[function], tool_choice="required"))


def test_a_grammar_and_tools_give_either_calls_or_the_text() -> None:
    matches = matcher(grammar_of(HERMES, ask(JSON)))
    assert matches('{"x":true}')
    assert matches(HERMES_F)
    assert not matches("hi")
    forced = matcher(grammar_of(HERMES, ask(JSON, tool_choice="required")))
    assert forced(HERMES_F)
    assert not forced('{"x":true}')
    assert grammar_of(HERMES, ask(JSON, tool_choice="none")) is JSON
    assert grammar_of(HERMES, ask(JSON, tools=[])) is JSON


GRAMMARS = [
    (JSON, '{"x":true}', '{"x":1}'),
    (GrammarSpec("json_object"), '{"any":[]}', "[]"),
    (GrammarSpec("regex", "[ab]+"), "abba", "abc"),
    (GrammarSpec("ebnf", 'root ::= "x" y\ny ::= [0-9]+'), "x12", "x"),
    (GrammarSpec("choice", '["yes","no"]'), "no", "maybe"),
    (GrammarSpec("structural_tag", '{"type":"structural_tag","format":{"type":"const_string","value":"c"}}'), "c", "d"),
]


@pytest.mark.parametrize(("grammar", "good", "bad"), GRAMMARS)
def test_every_grammar_applies_behind_the_reasoning(grammar: GrammarSpec, good: str, bad: str) -> None:
    opened = matcher(grammar_of(OPENS, ask(grammar, tools=[])))
    assert opened(f"so {bad} or {good}?</think>\n\n{good}")
    assert not opened(f"so</think>\n\n{bad}")
    assert not opened(good)
    possible = matcher(grammar_of(THINKS, ask(grammar, tools=[])))
    assert possible(f"<think>{bad}</think>{good}")
    assert possible(good)
    assert not possible(bad)


def test_a_prompt_that_ends_the_reasoning_leaves_the_grammar_alone() -> None:
    assert grammar_of(OPENS, ask(JSON, tools=[], template_kwargs={"shut": True})) is JSON
    assert grammar_of(OPENS, ask(JSON, tools=[]), reasoning="none") is JSON


def test_options_of_the_grammar_stay() -> None:
    spec = grammar_of(HERMES, ask(GrammarSpec("regex", "a", 3, jump_forward=False)))
    assert spec is not None
    assert (spec.max_whitespace, spec.jump_forward) == (3, False)
    spec = grammar_of(HERMES, ask(tool_choice="required", max_whitespace=2, jump_forward=False))
    assert spec is not None
    assert (spec.max_whitespace, spec.jump_forward) == (2, False)


REFUSED: list[tuple[str | None, dict[str, Any], m.GenerateRequest, str, str]] = [
    (HERMES, {}, ask(tool_choice="required", tools=[]), "tool_choice", "needs tools"),
    (HERMES, {}, ask(tool_choice="required", tool_name="h"), "tool_choice", "not among"),
    (HERMES, {}, ask(tools=[{"type": "web_search"}]), "tools[0]", "'function'"),
    (HERMES, {}, ask(tools=[{"type": "function", "function": {"name": 1}}]), "tools[0].function.name", "a string"),
    (HERMES, {}, ask(tools=[tool("f", parameters={"type": "array"})]), "tools[0].function.parameters", "'array'"),
    (HERMES, {}, ask(tools=[tool("f", parameters=3)]), "tools[0].function.parameters", "None"),
    (HERMES, {"tools": "none"}, ask(tool_choice="required"), "tool_choice", "--tool-call-parser none"),
    (UNKNOWN, {}, ask(), "tools", "--tool-call-parser"),
    (THINKS, {}, ask(GrammarSpec("json_schema", "["), tools=[]), "json_schema", "not valid JSON"),
    (THINKS, {}, ask(GrammarSpec("choice", "{}"), tools=[]), "choice", "not what it should be"),
    (HERMES, {}, ask(tool_choice="required", tools=[tool("f", parameters={"title": "x" * 300_000})]), "tools", "262"),
]


@pytest.mark.parametrize(("template", "parsers", "request_", "param", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    template: str, parsers: dict[str, Any], request_: m.GenerateRequest, param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        grammar_of(template, request_, **parsers)
    assert refusal.value.param == param
    assert message in refusal.value.message


def test_tools_are_shown_as_the_model_knows_them_and_not_at_all_for_none() -> None:
    _, shown = planned(HERMES, ask(tools=[tool("f", strict=True)]))
    assert '"name": "f"' in shown
    assert "strict" not in shown
    _, hidden = planned(HERMES, ask(tool_choice="none"))
    assert "parameters" not in hidden


def test_without_a_parser_tools_are_shown_and_calls_stay_text() -> None:
    plan, prompt = planned(HERMES, ask(), tools="none")
    assert '"name": "f"' in prompt
    assert plan.reader(prompt) is None


def test_a_template_that_knows_no_tools_gets_them_as_text_in_hermes_format() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "tool", "content": [{"type": "text", "text": "3"}], "tool_call_id": "1"},
        {"role": "user", "content": "so?"},
    ]
    plan, prompt = planned(TURNS, m.GenerateRequest("r", "i", chat=m.ChatInput(messages, tools=[tool("f")])))
    turns = prompt.split("<|im_start|>")[1:]
    assert turns[0].startswith("system\nBe brief.\n\n# Tools")
    assert orjson.dumps(SCHEMA).decode().replace(" ", "") in turns[0].replace(" ", "")
    assert turns[2] == "assistant\n" + "\n".join([HERMES_F, HERMES_F]) + "<|im_end|>\n"
    assert turns[3].replace("\n", "") == (
        "user<tool_response>2</tool_response><tool_response>3</tool_response><|im_end|>"
    )
    assert [t.split("\n")[0] for t in turns] == ["system", "user", "assistant", "user", "user", "assistant"]
    assert plan.calls is not None
    assert plan.calls.name == "hermes"
    _, first = planned(TURNS, ask())
    assert first.startswith("<|im_start|>system\n# Tools")


def test_special_tokens_that_mark_calls_and_reasoning_are_kept_in_the_text() -> None:
    words = vocabulary()
    ids = {t: words.tokenizer.token_to_id(t) for t in ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]")}
    assert answers(NAMED).plan(ask()).kept_ids == {ids["[TOOL_CALLS]"], ids["[ARGS]"]}
    assert answers(HERMES).plan(ask()).kept_ids == frozenset()
    assert answers(NAMED, reasoning="mistral").plan(ask(tools=[])).kept_ids == {ids["[THINK]"], ids["[/THINK]"]}


def test_ids_of_calls_are_random_and_as_the_family_wants_them() -> None:
    hermes, mistral = answers(HERMES).plan(ask()).calls, answers(MISTRAL).plan(ask()).calls
    assert hermes is not None
    assert mistral is not None
    assert hermes.new_id() != hermes.new_id()
    assert hermes.new_id().startswith("call_")
    assert len(mistral.new_id()) == 9
    assert mistral.new_id().isalnum()
