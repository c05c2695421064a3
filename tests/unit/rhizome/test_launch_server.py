from __future__ import annotations

import asyncio
import json
import re
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from rhizome import console
from rhizome.launch_config import parse
from rhizome.launch_server import _share_memory, main, with_model, with_port
from shared.held_folder import HeldFolder
from tests.fakes.vlm_checkpoints import vlm_checkpoint


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_every_service_gets_the_directory_and_the_name_of_a_local_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "my-model")
    launch = with_model(parse(["--model-path", str(folder)]))
    assert launch.tokenizer.model_path == launch.worker.model_path == str(folder)
    assert launch.tokenizer.served_model_name == launch.worker.served_model_name == "my-model"


def test_a_text_only_model_has_no_vision_service(tmp_path: Path) -> None:
    launch = with_model(parse(["--model-path", str(make_model(tmp_path / "text")), "--num-vision", "2"]))
    assert launch.own.num_vision == 0


def test_vision_computes_in_the_type_of_the_worker_unless_told_otherwise(tmp_path: Path) -> None:
    folder = vlm_checkpoint("llava", tmp_path / "vlm")[0]
    argv = ["--model-path", str(folder), "--num-vision", "2", "--dtype", "bfloat16"]
    launch = with_model(parse(argv))
    assert (launch.own.num_vision, launch.vision.model_path) == (2, str(folder))
    assert launch.vision.vision_dtype == "bfloat16"
    assert with_model(parse([*argv, "--vision-dtype", "float32"])).vision.vision_dtype == "float32"


def test_what_killed_vision_instances_leave_in_shared_memory_ends_with_the_launcher(tmp_path: Path) -> None:
    launch = parse(["--shared-memory-dir", str(tmp_path), "--num-vision", "2"])
    url = "nats://127.0.0.1:4999"
    stack = AsyncExitStack()
    _share_memory(stack, launch, url)
    (folder,) = tmp_path.iterdir()
    stranger = HeldFolder(folder / "vision-of-another-launcher", alone=True)
    for i in range(2):
        killed = HeldFolder(folder / f"vision-{i}", alone=True)
        (killed.path / "a.emb").write_bytes(b"x")
        killed.release()
    other = HeldFolder(folder, alone=False)
    asyncio.run(stack.aclose())
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "vision-of-another-launcher"]
    other.release()
    stranger.release()
    again = AsyncExitStack()
    _share_memory(again, launch, url)
    asyncio.run(again.aclose())
    assert list(tmp_path.iterdir()) == []


def test_a_fetched_model_keeps_the_name_it_was_asked_for_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHIZOME_HOME", str(tmp_path))
    make_model(tmp_path / "models" / "SmolLM2-135M-Instruct")
    launch = with_model(parse(["--model-path", "HuggingFaceTB/SmolLM2-135M-Instruct"]))
    assert launch.tokenizer.served_model_name == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_name_that_was_given_wins(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "my-model")
    launch = with_model(parse(["--model-path", str(folder), "--served-model-name", "prod"]))
    assert launch.tokenizer.served_model_name == "prod"


def test_port_0_becomes_a_port_that_can_be_shown() -> None:
    assert with_port(parse(["--port", "0"])).gateway.port > 0


def test_a_start_that_cannot_work_ends_with_status_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        assert main(["--port", str(holder.getsockname()[1])]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.splitlines()) == 1


def test_the_welcome_has_a_curl_command_that_can_be_pasted() -> None:
    text = console.welcome(["http://127.0.0.1:31000"], "nats://127.0.0.1:4222", "my-model", needs_key=True)
    (body,) = re.findall(r"-d '(.*)'", text)
    assert json.loads(body)["model"] == "my-model"
    assert "curl http://127.0.0.1:31000/v1/chat/completions -H 'Authorization: Bearer YOUR_KEY'" in text


def test_log_files_are_one_per_process_and_appended_to(tmp_path: Path) -> None:
    for line in ("first", "second"):
        files = console.LogFiles(tmp_path)
        files.write("worker-0", line)
        files.write("gateway-0", line)
        files.close()
    assert (tmp_path / "worker-0.log").read_text() == "first\nsecond\n"
    assert {path.name for path in tmp_path.iterdir()} == {"worker-0.log", "gateway-0.log"}
