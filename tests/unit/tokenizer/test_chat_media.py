"""Images and videos in messages: shown by templates that know them, spelled for those that know only strings."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from services.tokenizer.chat_template import ChatTemplate
from services.tokenizer.media.placeholders import Placeholders
from services.tokenizer.template_files import load_chat_templates
from shared.errors import InvalidRequest
from shared.messages import ChatInput
from tests.fakes.vlm_checkpoints import LLAVA_TEMPLATE, QWEN_TEMPLATE
from tests.unit.vision.checkpoints import checkpoint

WORDS = {"bos_token": "<s>", "eos_token": "</s>"}
QWEN = Placeholders(
    {"image": 1, "video": 2},
    {"image": "<|vision_start|><|image_pad|><|vision_end|>", "video": "<|vision_start|><|video_pad|><|vision_end|>"},
    {"image": "<|image_pad|>", "video": "<|video_pad|>"}, "<|image_pad|>", "<|image_pad|>",
)  # fmt: skip
LLAVA = Placeholders({"image": 1}, {"image": "<image>"}, {"image": "<image>"}, "<image>", "<image>")
STRINGS = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
TEXT_PARTS = (
    "{% for m in messages %}[{{ m.role }}] {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)
"""Knows parts, and shows nothing of images."""


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: str = "data:,secret") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


VIDEO = {"type": "video_url", "video_url": {"url": "data:,secret"}}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def rendered(source: str, placeholders: Placeholders | None, messages: list[dict[str, Any]], **more: Any) -> str:
    template = ChatTemplate(source, WORDS, 10_000, placeholders)
    return template.render(ChatInput(messages, **{"add_generation_prompt": False, **more}))


@pytest.mark.parametrize(("source", "placeholders"), [(QWEN_TEMPLATE, QWEN), (LLAVA_TEMPLATE, LLAVA)])
def test_a_template_that_shows_images_gets_parts_as_transformers_gives_them(
    source: str, placeholders: Placeholders
) -> None:
    messages = [*user(text("Compare "), image(), text(" and "), image()), {"role": "assistant", "content": "Why?"}]
    theirs = [*user(text("Compare "), {"type": "image"}, text(" and "), {"type": "image"}), messages[1]]
    (want,), _ = render_jinja_template([theirs], chat_template=source, **WORDS)
    assert rendered(source, placeholders, messages) == want
    assert want.count(placeholders.marks["image"]) == 2


def test_videos_are_shown_as_videos() -> None:
    shown = rendered(QWEN_TEMPLATE, QWEN, user(text("a"), VIDEO, image()))
    assert f"a{QWEN.texts['video']}{QWEN.texts['image']}" in shown


@pytest.mark.parametrize("source", [STRINGS, TEXT_PARTS], ids=["strings only", "parts without images"])
def test_a_template_that_shows_no_images_gets_the_words_that_stand_for_them(source: str) -> None:
    shown = rendered(source, QWEN, user(text("Look: "), image(), VIDEO, text("What?")))
    between = "\n" if source is STRINGS else ""
    assert shown.strip() == "[user] " + between.join(["Look: ", QWEN.texts["image"], QWEN.texts["video"], "What?"])


def test_the_built_in_template_of_llava_spells_images() -> None:
    templates = load_chat_templates(checkpoint("llava_next")[0], "llava_llama_3", WORDS, 10_000, LLAVA)
    shown = templates.render(ChatInput(user(text("Describe the image"), image())))
    assert shown.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision")
    assert "user<|end_header_id|>\n\nDescribe the image\n<image><|eot_id|>" in shown
    assert shown.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_sources_never_get_into_the_prompt_and_messages_stay_as_they_were() -> None:
    for source in (QWEN_TEMPLATE, STRINGS, TEXT_PARTS):
        messages = user(image(), text("x"))
        assert "secret" not in rendered(source, QWEN, messages)
        assert messages == user(image(), text("x"))


@pytest.mark.parametrize("source", [STRINGS, TEXT_PARTS])
def test_a_model_of_text_refuses_images_with_their_place(source: str) -> None:
    with pytest.raises(InvalidRequest, match="reads text only") as refused:
        rendered(source, None, [*user(text("x")), *user(text("x"), image())])
    assert refused.value.param == "messages[1].content[1]"


def test_a_model_without_videos_says_what_it_reads() -> None:
    with pytest.raises(InvalidRequest, match="'text' or 'image_url', got 'video_url': this model reads text, images"):
        rendered(LLAVA_TEMPLATE, LLAVA, user(VIDEO))
    with pytest.raises(InvalidRequest, match="'text' or 'image_url' or 'video_url', got 'input_audio'"):
        rendered(QWEN_TEMPLATE, QWEN, user({"type": "input_audio"}))
    with pytest.raises(InvalidRequest, match="got None"):
        rendered(QWEN_TEMPLATE, QWEN, user({"type": ["image_url"]} | {"type": None}))


def test_an_answer_behind_images_is_continued() -> None:
    messages = [*user(image(), text("What?")), {"role": "assistant", "content": "It is a"}]
    for source in (QWEN_TEMPLATE, LLAVA_TEMPLATE, STRINGS):
        placeholders = LLAVA if source is LLAVA_TEMPLATE else QWEN
        shown = rendered(source, placeholders, messages, continue_final_message=True)
        assert shown.endswith("It is a")
        assert shown.count(placeholders.marks["image"]) == 1


def test_the_last_text_of_a_message_with_an_image_is_continued() -> None:
    shown = rendered(QWEN_TEMPLATE, QWEN, user(image(), text("It is a")), continue_final_message=True)
    assert shown.endswith(f"{QWEN.texts['image']}It is a")


def test_an_image_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequest, match="no text to continue"):
        rendered(QWEN_TEMPLATE, QWEN, user(text("x"), image()), continue_final_message=True)
