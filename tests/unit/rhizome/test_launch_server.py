from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from rhizome import console
from rhizome.launch_config import parse
from rhizome.launch_server import main, with_model, with_port


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
