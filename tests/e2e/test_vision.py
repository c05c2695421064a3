"""Images and videos through all processes: tiny models with random weights, real pictures, real clients."""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nats
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

import rhizome as rz
from tests.e2e.stack import Stack
from tests.fakes.vlm_checkpoints import vlm_checkpoint

ROOT = Path(__file__).parents[2]
FLAGS = ("--attention-backend", "torch", "--num-threads", "1", "--max-total-tokens", "30000")
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def png(seed: int, width: int = 100, height: int = 80) -> bytes:
    """Noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def message(*parts: str | bytes) -> list[dict[str, Any]]:
    """A user's turn of texts and images."""
    content: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with a picture, on a private address; its host:port."""
    folder = tmp_path_factory.mktemp("www")
    (folder / "picture.png").write_bytes(png(7))
    (folder / "page.png").write_text("<html><body>not a picture</body></html>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory, pictures: str) -> Iterator[Stack]:
    folder, _ = vlm_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("vlm") / "tiny-qwen-vl")
    running = Stack("--model-path", str(folder), "--allowed-media-hosts", pictures, *FLAGS)
    try:
        running.wait_ready()
        yield running
    finally:
        assert running.stop() == 0


def ask(stack: Stack, messages: list[dict[str, Any]], **fields: Any) -> Any:
    """A greedy answer."""
    body = {"messages": messages, "temperature": 0, "max_tokens": 8, **fields}
    status, answer = stack.post("/v1/chat/completions", body)
    assert status == 200, answer
    return answer


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def metric(stack: Stack, name: str) -> float:
    """The sum of a counter over all instances."""
    import urllib.request

    with urllib.request.urlopen(stack.url + "/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))


def test_the_openai_client_sends_images_by_data_and_by_address(qwen: Stack, pictures: str) -> None:
    client = OpenAI(base_url=qwen.url + "/v1", api_key="none")
    answers = []
    for url in (data_url(png(7)), f"http://{pictures}/picture.png"):
        parts: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe it."}]
        answer = client.chat.completions.create(
            model="tiny-qwen-vl", messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=8
        )
        answers.append(answer.choices[0].message.content)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.image_tokens == 12  # type: ignore[attr-defined]
    assert answers[0] == answers[1]


def test_the_same_image_again_costs_neither_encoder_nor_prefill(qwen: Stack) -> None:
    first = ask(qwen, message("Look:", png(11), "What?"))
    encoded = metric(qwen, "rhizome_vision_media_total")
    again = ask(qwen, message("Look:", png(11), "What?"))
    assert text_of(again) == text_of(first)
    turns = [*message("Look:", png(11), "What?"), {"role": "assistant", "content": text_of(first)},
             {"role": "user", "content": "And now?"}]  # fmt: skip
    later = ask(qwen, turns)
    assert metric(qwen, "rhizome_vision_media_total") == encoded > 0
    details = [answer["usage"]["prompt_tokens_details"] for answer in (first, again, later)]
    assert details[0]["cached_tokens"] < 40
    assert min(d["cached_tokens"] for d in details[1:]) >= first["usage"]["prompt_tokens"] // 16 * 16 - 16
    assert [d["image_tokens"] for d in details] == [12, 12, 12]


def test_two_images_of_one_size_are_never_taken_for_each_other(qwen: Stack) -> None:
    """Answers with a warm cache are those of a cold one."""
    warm = [text_of(ask(qwen, message(png(seed), "Which one?"), max_tokens=16)) for seed in (21, 22, 23)]
    assert len(set(warm)) > 1
    qwen.post("/flush_cache", {})
    cold = []
    for seed in (23, 22, 21):
        cold.append(text_of(ask(qwen, message(png(seed), "Which one?"), max_tokens=16)))
        qwen.post("/flush_cache", {})
    assert cold[::-1] == warm


def test_several_images_and_structured_output_go_together(qwen: Stack) -> None:
    messages = message("First", png(31), "second", png(32, 60, 90), "third", png(33, 200, 57), "?")
    answer = ask(qwen, messages, choice=["the first", "the second", "the third"], max_tokens=32)
    assert text_of(answer) in ("the first", "the second", "the third")
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 12 + 6 + 14


def test_streams_and_choices_carry_images_too(qwen: Stack) -> None:
    client = OpenAI(base_url=qwen.url + "/v1", api_key="none")
    messages: Any = message(png(41, 700, 500), "Describe it.")
    stream = client.chat.completions.create(
        model="tiny-qwen-vl", messages=messages, temperature=0, max_tokens=8, n=2, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts[0] == texts[1] == text_of(ask(qwen, messages))


def test_generate_takes_images_as_sglang_does(qwen: Stack) -> None:
    prompt = f"Look: {QWEN_PICTURE} What is it?"
    sampling = {"temperature": 0, "max_new_tokens": 8}
    url, bare = data_url(png(51)), base64.b64encode(png(51)).decode()
    answers = []
    for given in (url, bare, [url]):
        status, answer = qwen.post("/generate", {"text": prompt, "image_data": given, "sampling_params": sampling})
        assert status == 200, answer
        assert answer["meta_info"]["image_tokens"] == 12
        answers.append(answer["text"])
    status, batch = qwen.post(
        "/generate",
        {"text": [prompt, prompt + prompt], "image_data": [url, [url, bare]], "sampling_params": sampling},
    )
    assert status == 200, batch
    assert [answers[0]] * 3 + [answers[0]] == [*answers, batch[0]["text"]]
    assert batch[1]["meta_info"]["image_tokens"] == 24
    status, refused = qwen.post("/generate", {"text": "no place", "image_data": url, "sampling_params": sampling})
    assert (status, refused["error"]["code"]) == (400, "invalid_request")
    assert "places for 0 images" in refused["error"]["message"]


@pytest.mark.parametrize("over", ["http", "nats"])
def test_programs_show_pictures(qwen: Stack, over: str) -> None:
    @rz.function
    def compare(s: Any, first: bytes, second: bytes) -> None:
        s += rz.user(rz.image(first) + rz.image(second) + "Which one is brighter?")
        s += rz.assistant(rz.select("best", ["first", "second"]))
        s += rz.user("Why?")
        s += rz.assistant(rz.gen("why", max_tokens=6))

    backend = rz.RuntimeEndpoint(qwen.url) if over == "http" else rz.NatsEndpoint(qwen.nats_url)
    state = compare.run(png(61), png(62), backend=backend, temperature=0)
    assert state["best"] in ("first", "second")
    assert state.text().count(QWEN_PICTURE) == 2
    assert len(state["why"]) > 0


def test_the_example_of_two_pictures_runs(qwen: Stack) -> None:
    command = [sys.executable, "-m", "examples.describe_images", "--url", qwen.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("first")
    assert lines[-1] in ("corners: first", "corners: second")


def test_a_video_becomes_frames(qwen: Stack) -> None:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(12):
            pixels = np.full((64, 96, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    url = "data:video/mp4;base64," + base64.b64encode(out.getvalue()).decode()
    parts = [{"type": "video_url", "video_url": {"url": url, "fps": 2}}, {"type": "text", "text": "What happens?"}]
    answer = ask(qwen, [{"role": "user", "content": parts}])
    tokens = answer["usage"]["prompt_tokens_details"]["image_tokens"]
    assert tokens > 0
    assert tokens % 3 == 0  # six frames, in pairs
    parts[0]["video_url"]["max_frames"] = 4  # type: ignore[index]
    fewer = ask(qwen, [{"role": "user", "content": parts}])
    assert fewer["usage"]["prompt_tokens_details"]["image_tokens"] < tokens


def bomb() -> bytes:
    """A small file with the header of an enormous image."""
    data = bytearray(png(1, 8, 8))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


HOSTILE: dict[str, tuple[str, str]] = {
    "thirty thousand wide": (data_url(png(1, 30_000, 2)), "side"),
    "too long and thin": (data_url(png(1, 5000, 2)), ""),
    "truncated": (data_url(png(1)[:400]), ""),
    "a decompression bomb": (data_url(bomb()), ""),
    "SVG": ("data:image/svg+xml;base64," + base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
            "not an image"),
    "text": (data_url(b"hello, I am an image"), "not an image"),
    "wrong base64": ("data:image/png;base64,@@@@", "base64"),
    "nothing": ("data:image/png;base64,", "empty"),
    "localhost": ("http://localhost/picture.png", "public internet"),
    "the cloud's metadata": ("http://169.254.169.254/latest/meta-data", "public internet"),
    "a local file": ("file:///etc/passwd", ""),
    "another scheme": ("ftp://example.com/a.png", "URL"),
    "nobody's name": ("http://no-such-host.invalid/a.png", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_get_a_clear_400_and_the_next_request_works(qwen: Stack, name: str) -> None:
    url, says = HOSTILE[name]
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    status, answer = qwen.post("/v1/chat/completions", body)
    assert 400 <= status < 500, answer
    assert answer["error"]["param"].startswith("messages[0].content[0].image_url")
    assert says in answer["error"]["message"]
    ask(qwen, message(png(7), "Still there?"), max_tokens=1)


def test_a_page_that_calls_itself_a_picture_is_refused(qwen: Stack, pictures: str) -> None:
    body = {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"http://{pictures}/page.png"}}]}]}  # fmt: skip
    status, answer = qwen.post("/v1/chat/completions", body)
    assert status == 400
    assert "not an image" in answer["error"]["message"]


def test_an_image_of_one_pixel_is_an_image(qwen: Stack) -> None:
    assert ask(qwen, message(png(1, 1, 1), "?"))["usage"]["prompt_tokens_details"]["image_tokens"] > 0


def test_more_images_than_allowed_are_refused(qwen: Stack) -> None:
    status, answer = qwen.post("/v1/chat/completions", {"messages": message(*[png(7)] * 65)})
    assert status == 400
    assert "limit of 64" in answer["error"]["message"]


async def _tokens_over_nats(url: str, request: dict[str, Any]) -> str:
    bus = await nats.connect(url)
    text, done = "", asyncio.Event()

    async def on_deltas(msg: Any) -> None:
        nonlocal text
        for delta in json.loads(msg.data)["deltas"]:
            text += delta.get("text", "")
            if "finish_reason" in delta:
                done.set()

    await bus.subscribe(request["reply"], cb=on_deltas)
    await bus.flush()
    answer = await bus.request("rz.v1.default.tokenizer.generate", json.dumps(request).encode(), timeout=60)
    assert "error" not in json.loads(answer.data), answer.data
    await asyncio.wait_for(done.wait(), 60)
    await bus.close()
    return text


async def test_a_nats_client_sends_images_in_its_messages(qwen: Stack) -> None:
    messages = message(png(71), "Describe it.")
    request = {"rid": "vision-1", "reply": "my.pictures", "chat": {"messages": messages},
               "sampling": {"max_new_tokens": 8, "temperature": 0}}  # fmt: skip
    assert await _tokens_over_nats(qwen.nats_url, request) == text_of(ask(qwen, messages))


def test_a_stream_about_an_image_survives_the_loss_of_its_worker(qwen: Stack) -> None:
    """The prompt is computed again on the new engine, from the embeddings that vision still holds."""
    messages: Any = message(png(81, 300, 200), "Tell me all about it.")
    whole = text_of(ask(qwen, messages, max_tokens=300, ignore_eos=True))
    client = OpenAI(base_url=qwen.url + "/v1", api_key="none", timeout=90, max_retries=0)
    stream = client.chat.completions.create(
        model="tiny-qwen-vl", messages=messages, temperature=0, max_tokens=300, stream=True,
        extra_body={"ignore_eos": True, "cache_salt": "mine"},
    )  # fmt: skip
    text, killed = "", False
    for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if len(text) > 20 and not killed:
            killed = True
            os.kill(qwen.pids("services.worker")[0], signal.SIGKILL)
    assert killed
    assert text == whole


def test_the_example_of_llava_works_with_a_local_image_server(
    tmp_path_factory: pytest.TempPathFactory, pictures: str
) -> None:
    folder, _ = vlm_checkpoint("llava_next", tmp_path_factory.mktemp("vlm") / "tiny-llava-next")
    running = Stack(
        "--model-path", str(folder), "--chat-template", "llava_llama_3", "--allowed-media-hosts", pictures, *FLAGS
    )
    try:
        running.wait_ready()
        answer = ask(
            running,
            [{"role": "user", "content": [
                {"type": "text", "text": "Describe the image"},
                {"type": "image_url", "image_url": {"url": f"http://{pictures}/picture.png"}},
            ]}],
            model="tiny-llava-next",
        )  # fmt: skip
        assert answer["usage"]["prompt_tokens_details"]["image_tokens"] > 16
    finally:
        assert running.stop() == 0


def test_requests_are_answered_while_a_vision_replica_is_killed_and_nothing_stays_behind(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, _ = vlm_checkpoint("qwen2_vl", tmp_path_factory.mktemp("vlm") / "tiny-vl")
    memory = tmp_path_factory.mktemp("shm")
    running = Stack(
        "--model-path", str(folder), "--num-vision", "2", "--shared-memory-dir", str(memory), *FLAGS,
        "--max-queued-media", "1024",
    )  # fmt: skip
    rng = random.Random(3)
    sizes = [(rng.randint(8, 300), rng.randint(8, 300)) for _ in range(200)]
    try:
        running.wait_ready()
        done = 0
        lock = threading.Lock()

        def one(index: int) -> tuple[int, Any]:
            nonlocal done
            image = png(index % 200, *sizes[index % 200])
            body = {"messages": message(image, "?"), "temperature": 0, "max_tokens": 2}
            outcome = running.post("/v1/chat/completions", body)
            with lock:
                done += 1
            return outcome

        with ThreadPoolExecutor(16) as pool:
            outcomes = pool.map(one, range(300))
            for after in (60, 150):
                while done < after:
                    time.sleep(0.02)
                os.kill(running.pids("services.vision")[0], signal.SIGKILL)
            results = list(outcomes)
        bad = [answer for status, answer in results if status != 200]
        assert not bad, f"{len(bad)} of 300 failed: {bad[:3]}"
    finally:
        assert running.stop() == 0
    assert list(Path(memory).iterdir()) == []
