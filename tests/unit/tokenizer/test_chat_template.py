"""Chat templates: the text transformers would give, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from services.tokenizer.chat_messages import text_size
from services.tokenizer.chat_template import ChatTemplate
from services.tokenizer.template_files import built_in_names, load_chat_templates
from shared.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from shared.messages import ChatInput
from tests.unit.tokenizer import tiny

WORDS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}</{{ m.role }}>{% endfor %}"
)
WITH_TOOLS = """{%- set ns = namespace(count=0) %}
{%- if tools is not none and tools %}
    {{- "Tools:\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- for m in messages %}
    {%- set ns.count = ns.count + 1 %}
    {%- if m.role == "ignored" %}{% continue %}{% endif %}
    {%- if 'tool_calls' in m %}
        {%- for call in m.tool_calls %}
            {{- call.function.name }}({% for k, v in call.function.arguments | items %}{{ k }}={{ v }}{% endfor %})
        {%- endfor %}
    {%- else %}
        {% generation %}{{- m.role + ': ' + m.content }}{% endgeneration %}

    {%- endif %}
{%- endfor %}
{{ ns.count }}"""
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": ' Where\'s <Paris> & "co"? '},
    {"role": "assistant", "content": "In France. "},
    {"role": "user", "content": "日本?"},
]
TOOL = {"type": "function", "function": {"name": "look", "description": "<up> & näher", "parameters": {}}}


def rendered(source: str, chat: ChatInput) -> str:
    return ChatTemplate(source, WORDS, 10_000).render(chat)


def reference(source: str, chat: ChatInput) -> str:
    texts, _ = render_jinja_template(
        [chat.messages], tools=chat.tools or None, chat_template=source,
        continue_final_message=chat.continue_final_message,
        add_generation_prompt=chat.add_generation_prompt and not chat.continue_final_message,
        **WORDS, **chat.template_kwargs,
    )  # fmt: skip
    return texts[0]


@pytest.mark.parametrize("source", [CHATML, TRIMMING, WITH_TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_equals_transformers(source: str, prompt: bool) -> None:
    chat = ChatInput(CHAT, tools=[TOOL], add_generation_prompt=prompt)
    assert rendered(source, chat) == reference(source, chat)


@pytest.mark.parametrize("source", [CHATML, TRIMMING])
@pytest.mark.parametrize("last", ["The answer", "The answer is: ", " leading", "42"])
def test_a_continued_message_is_left_open_as_in_transformers(source: str, last: str) -> None:
    chat = ChatInput([*CHAT, {"role": "assistant", "content": last}], continue_final_message=True)
    text = rendered(source, chat)
    assert text == reference(source, chat)
    assert text.endswith(last.strip() if source is TRIMMING else last)


def test_a_template_that_drops_the_final_message_cannot_continue_it() -> None:
    source = "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}"
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        rendered(source, ChatInput(CHAT, continue_final_message=True))


def test_text_parts_are_joined_for_a_template_that_knows_only_strings() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert rendered(CHATML, ChatInput([{"role": "user", "content": parts}])).startswith(
        "<|im_start|>user\na\nb<|im_end|>"
    )
    assert rendered(TRIMMING, ChatInput([{"role": "user", "content": parts}])).startswith("<s>[user] a\nb</s>")


def test_a_template_that_knows_only_parts_gets_strings_as_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]
    assert rendered(PARTS, ChatInput(messages)) == "<user>ab</user><assistant>c</assistant>"


def test_parts_that_are_not_text_are_refused_by_name() -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[0\]"):
        rendered(CHATML, ChatInput([{"role": "user", "content": content}]))


def test_tool_call_arguments_reach_the_template_as_an_object_and_null_content_as_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    text = rendered(WITH_TOOLS, ChatInput([{"role": "assistant", "content": None, "tool_calls": [call]}]))
    assert "look(at=x)" in text
    assert rendered(CHATML, ChatInput([{"role": "assistant", "content": None}])).startswith(
        "<|im_start|>assistant\n<|im_end|>"
    )


def test_the_templates_own_message_is_the_error() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}", ChatInput(CHAT))


@pytest.mark.parametrize(
    "source",
    ["{{ 1 / 0 }}", "{{ messages[9]['role'] }}", "{{ 'a' + 1 }}", "{{ range(10**9) | length }}", "{{ none.x.y }}",
     "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"],
)  # fmt: skip
def test_whatever_a_template_stumbles_over_is_a_refused_request(source: str) -> None:
    template = ChatTemplate(source + "{{ messages[0].content }}", WORDS, 1000)
    with pytest.raises(InvalidRequest, match="the chat template refused the messages"):
        template.render(ChatInput([{"role": "user", "content": "x"}]))


def test_a_rendering_stops_when_it_grows_over_the_bound() -> None:
    source = "{% for a in range(90000) %}{% for b in range(90000) %}{{ messages[0].content }}{% endfor %}{% endfor %}"
    with pytest.raises(ContextLengthExceeded, match="over 1,000 characters"):
        ChatTemplate(source, WORDS, 1000).render(ChatInput([{"role": "user", "content": "x"}]))


def test_template_arguments_reach_the_template_but_cannot_replace_the_messages() -> None:
    source = "{{ 'think' if enable_thinking else 'plain' }}{{ messages[0].content }}"
    chat = ChatInput([{"role": "user", "content": "x"}], template_kwargs={"enable_thinking": True})
    assert rendered(source, chat) == "thinkx"
    with pytest.raises(InvalidRequest, match="messages"):
        rendered(source, ChatInput(chat.messages, template_kwargs={"messages": []}))


def test_a_template_that_does_not_compile_is_a_start_up_error() -> None:
    with pytest.raises(ConfigError, match="does not compile"):
        ChatTemplate("{% for %}", WORDS, 1000)


def test_deeply_nested_arguments_are_refused_not_fatal() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    assert text_size(nested, 2000) == 2001
    with pytest.raises(InvalidRequest, match="refused"):
        rendered("{{ x | tojson }}{{ messages }}", ChatInput(CHAT, template_kwargs={"x": nested}))


def test_the_senders_messages_are_not_changed() -> None:
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    rendered(PARTS, ChatInput(messages, continue_final_message=True))
    assert messages == [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]


@pytest.mark.parametrize("name", built_in_names())
def test_every_built_in_template_shows_a_conversation_in_order(tmp_path: Path, name: str) -> None:
    folder = tiny.write_model(tmp_path / "model")
    templates = load_chat_templates(folder, name, WORDS, 10_000)
    text = templates.render(ChatInput(CHAT))
    spots = [text.index(part) for part in ("Where's <Paris>", "In France.", "日本?")]
    assert spots == sorted(spots)
    assert "Be brief." in text
    opened = templates.render(
        ChatInput([*CHAT, {"role": "assistant", "content": "It is"}], continue_final_message=True)
    )
    assert opened.endswith("It is")
    assert "Be brief." in opened


def test_templates_of_the_llama_and_mistral_families_are_spelled_as_published(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "model")
    chat = ChatInput([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])

    def by(name: str) -> str:
        return load_chat_templates(folder, name, WORDS, 10_000).render(chat)

    assert by("llama-2") == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]"
    assert by("mistral") == "<s>[INST] S\n\nU[/INST]"
    assert by("qwen") == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert by("llama-3") == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert by("vicuna") == "<s>S USER: U ASSISTANT:"
    assert by("gemma") == "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n"


def test_the_models_template_is_found_wherever_it_is_kept(tmp_path: Path) -> None:
    chat = ChatInput([{"role": "user", "content": "x"}])
    in_config = tiny.write_model(tmp_path / "a", chat_template="config {{ messages[0].content }}")
    assert load_chat_templates(in_config, "", {}, 100).render(chat) == "config x"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools {{ tools | length }}"}]
    listed = tiny.write_model(tmp_path / "b", chat_template=named)
    assert load_chat_templates(listed, "", {}, 100).render(chat) == "plain"
    assert load_chat_templates(listed, "", {}, 100).render(ChatInput(chat.messages, tools=[TOOL])) == "tools 1"
    (in_config / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert load_chat_templates(in_config, "", {}, 100).render(chat) == "file x"
    (in_config / "additional_chat_templates").mkdir()
    (in_config / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert load_chat_templates(in_config, "rag", {}, 100).render(chat) == "rag"


def test_a_template_can_be_a_file_of_the_operators(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "model")
    (tmp_path / "t.jinja").write_text("own")
    (tmp_path / "t.json").write_text(json.dumps({"chat_template": "json"}))
    chat = ChatInput([{"role": "user", "content": "x"}])
    assert load_chat_templates(folder, str(tmp_path / "t.jinja"), {}, 100).render(chat) == "own"
    assert load_chat_templates(folder, str(tmp_path / "t.json"), {}, 100).render(chat) == "json"
    with pytest.raises(ConfigError, match="chatml"):
        load_chat_templates(folder, "no-such-template", {}, 100)


def test_a_model_without_a_template_says_so_when_it_is_asked_to_chat(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "model")
    with pytest.raises(InvalidRequest, match="no chat template"):
        load_chat_templates(folder, "", {}, 100).render(ChatInput(CHAT))


def test_the_default_models_template_equals_transformers() -> None:
    source = (tiny.real_folder() / "chat_template.jinja").read_text()
    chat = ChatInput(CHAT[1:])
    assert rendered(source, chat) == reference(source, chat)
