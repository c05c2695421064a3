"""Parts of the language that work on texts: reasoning, chat templates, pictures, parameters."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

import rhizome as rz
from rhizome.lang.chat_template import TEMPLATES, ChatTemplate, get_chat_template_by_model_path
from rhizome.lang.conversation import Conversation
from rhizome.lang.media import load_image, load_video
from rhizome.lang.reasoning import ReasoningSplitter
from rhizome.lang.template_probe import compose, probe_template

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("name", "text", "thoughts", "answer"),
    [
        ("qwen3", "<think>\nhm < b\n</think>\n\nyes", "hm < b\n", "yes"),
        ("qwen3", "no thoughts </think>", "", "no thoughts </think>"),
        ("deepseek-r1", "hm</think>yes", "hm", "yes"),
        ("deepseek-r1", "never ends", "never ends", ""),
        ("kimi", "◁think▷a◁/think▷b", "a", "b"),
    ],
)
def test_thoughts_and_answer_come_apart_in_pieces_of_any_size(
    name: str, text: str, thoughts: str, answer: str, size: int
) -> None:
    splitter = ReasoningSplitter(name)
    parts = [splitter.feed(text[i : i + size]) for i in range(0, len(text), size)] + [splitter.end()]
    assert ("".join(p[0] for p in parts), "".join(p[1] for p in parts)) == (thoughts, answer)


@pytest.mark.parametrize("stream", [False, True])
def test_a_program_keeps_only_the_answer_in_its_text(stream: bool) -> None:
    @rz.function
    def program(s):
        s += rz.user("Why?")
        s += rz.assistant(rz.separate_reasoning(rz.gen("a"), model_type="qwen3"))

    state = program.run(backend=rz.FakeBackend(["<think>hm</think>So."]), stream=stream)
    assert (state["a"], state["a_reasoning_content"]) == ("So.", "hm")
    assert state.messages()[-1]["content"] == "So."
    with pytest.raises(rz.LanguageError, match="no reasoning format 'x'"):
        rz.separate_reasoning(rz.gen("a"), model_type="x")


@pytest.mark.parametrize("name", ["default", "chatml", "qwen", "llama-3-instruct", "gemma-it", "vicuna_v1.1"])
async def test_a_servers_template_is_found_by_rendering(name: str) -> None:
    real = TEMPLATES[name]

    async def render(messages: list[dict[str, Any]]) -> str:
        return compose(real, messages) if isinstance(messages[-1]["content"], str) else ""

    found = await probe_template(render, "found")
    assert found is not None
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    for messages in (talk, [{"role": "system", "content": "be"}, *talk]):
        assert compose(found, messages) == compose(real, messages)
    assert found.default_system_prompt == real.default_system_prompt


QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


async def test_what_stands_for_a_picture_is_found_by_rendering_one() -> None:
    real = TEMPLATES["qwen"]

    async def render(messages: list[dict[str, Any]]) -> str:
        content = messages[-1]["content"]
        if isinstance(content, str):
            return compose(real, messages)
        picture, text = content
        assert picture["image_url"]["url"].startswith("data:image/gif;base64,")
        return compose(
            real, [{"role": "user", "content": "<|vision_start|><|image_pad|><|vision_end|>" + text["text"]}]
        )

    found = await probe_template(render, "found")
    assert found is not None
    assert found.image_token == QWEN_PICTURE


async def test_a_template_that_is_no_concatenation_is_not_taken() -> None:
    async def render(messages: list[dict[str, str]]) -> str:
        return f"{len(messages)} turns: " + "".join(m["content"] for m in messages)

    assert await probe_template(render, "odd") is None
    llama2 = TEMPLATES["llama-2-chat"]

    async def render_llama2(messages: list[dict[str, str]]) -> str:
        return compose(llama2, messages)

    assert await probe_template(render_llama2, "llama2") is None  # the system text is inside the first user turn


def test_templates_are_chosen_by_the_models_name() -> None:
    names = {
        "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2-vl", "Qwen/Qwen3-8B": "qwen", "SmolLM2-135M-Instruct": "chatml",
        "meta-llama/Llama-3.1-8B-Instruct": "llama-3-instruct", "gpt2": "default",
    }  # fmt: skip
    for path, name in names.items():
        assert get_chat_template_by_model_path(path).name == name


def test_llama_2_puts_the_system_text_into_the_first_user_turn() -> None:
    talk = Conversation(TEMPLATES["llama-2-chat"])
    for role, text in (("system", "be"), ("user", "hi"), ("assistant", "ho"), ("user", "so?")):
        talk.begin(role)
        talk.append(text)
        talk.end(role)
    assert talk.text == "[INST] <<SYS>>\nbe\n<</SYS>>\n\nhi [/INST]ho </s><s>[INST] so? [/INST]"


def test_turns_do_not_nest() -> None:
    talk = Conversation(ChatTemplate("none"))
    talk.begin("user")
    with pytest.raises(rz.LanguageError, match="begins inside the user turn"):
        talk.begin("assistant")
    with pytest.raises(rz.LanguageError, match="the user turn is open"):
        talk.end("system")


def test_several_pictures_are_kept_in_order(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)

    @rz.function
    def program(s):
        s += rz.user(rz.image(str(file)) + rz.image("https://example.org/b.jpg") + rz.image(PNG) + "What?")
        s += rz.assistant(rz.gen("a"))

    backend = rz.FakeBackend(["cats"])
    state = program.run(backend=backend)
    inline = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert [i.url for i in backend.calls[0].prompt.images] == [inline, "https://example.org/b.jpg", inline]
    assert state.text().startswith("USER:<image><image><image>What?")
    parts = state.messages()[0]["content"]
    assert [p["type"] for p in parts] == ["image_url", "image_url", "image_url", "text"]
    assert parts[-1]["text"] == "What?"


def test_what_is_no_picture_is_an_error_at_the_reading_line(tmp_path: Path) -> None:
    with pytest.raises(rz.LanguageError, match="not a JPEG, PNG"):
        load_image(b"text")
    with pytest.raises(rz.LanguageError, match="No such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(rz.LanguageError, match="not int"):
        load_image(5)
    with pytest.raises(rz.LanguageError, match="num_frames is 1 to 256, got 0"):
        load_video("x.mp4", 0)

    class Picture:
        def save(self, buffer, format):
            buffer.write(PNG)

    assert load_image(Picture()).url.startswith("data:image/png;base64,")

    @rz.function
    def program(s):
        s += rz.image(b"text") + rz.gen("a")

    with pytest.raises(rz.ProgramError, match=r"in program: image failed: image bytes"):
        program.run(backend=rz.FakeBackend(["x"])).text()


def test_contradicting_parameters_are_told_where_they_are_written() -> None:
    for arguments, reason in (
        ({"regex": "a", "json_schema": "{}"}, "one generation has one grammar, got json_schema and regex"),
        ({"regex": "("}, "regex '\\('"),
        ({"dtype": list}, "use int, float, str or bool"),
        ({"dtype": int, "regex": "a"}, "dtype or regex, not both"),
    ):
        with pytest.raises(rz.LanguageError, match=reason):
            rz.gen("a", **arguments)
    with pytest.raises(rz.LanguageError, match="select needs choices"):
        rz.select("a", choices=[])


def test_a_stop_regex_ends_the_text_and_the_call() -> None:
    @rz.function
    def program(s):
        s += rz.gen("a", stop_regex=r"\d+\.") + "|"

    backend = rz.FakeBackend(["one two 33. four"])
    state = program.run(backend=backend)
    assert state.text() == "one two |"
    assert state.get_meta_info("a")["finish_reason"] == {"type": "stop", "matched": "33."}


def test_several_samples_are_a_list() -> None:
    @rz.function
    def program(s):
        s += "Q:" + rz.gen("a", n=3)

    state = program.run(backend=rz.FakeBackend(["x", "y", "z"]))
    assert (state["a"], state.text()) == (["x", "y", "z"], "Q:x")


def test_video_frames_are_spread_evenly(tmp_path: Path) -> None:
    import av
    import numpy as np

    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(11):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    frames = load_video(str(path), 3)
    assert len(frames) == 3
    assert len({frame.url for frame in frames}) == 3
    assert frames[0].url.startswith("data:image/jpeg;base64,")
    with pytest.raises(rz.LanguageError, match=r"none\.mp4"):
        load_video(str(tmp_path / "none.mp4"), 3)
