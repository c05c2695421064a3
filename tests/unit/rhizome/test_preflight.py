from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path

import pytest

from rhizome.launch_config import parse
from rhizome.preflight import check_machine, check_model, heads_divide
from services.worker.tensor_parallel import shard_model
from shared.errors import ConfigError
from shared.model_config import ModelConfig, load_model_config

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 72,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 256,
}  # fmt: skip


def model(folder: Path, **fields: object) -> Path:
    (folder / "config.json").write_text(json.dumps({**SHAPE, **fields}))
    return folder


@pytest.fixture
def taken_port() -> int:
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.listen()
    yield holder.getsockname()[1]
    holder.close()


def test_a_port_in_use_is_named(taken_port: int) -> None:
    with pytest.raises(ConfigError, match=f"--port {taken_port} on 127.0.0.1: Address already in use"):
        check_machine(parse(["--port", str(taken_port)]))


def test_the_port_of_a_second_gateway_is_checked_too(taken_port: int) -> None:
    with pytest.raises(ConfigError, match=f"--port {taken_port}"):
        check_machine(parse(["--port", str(taken_port - 1), "--num-gateways", "2"]))


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--chat-template", "./absent.jinja"], "--chat-template ./absent.jinja: no such file"),
        (["--api-key-file", "/absent"], "--api-key-file /absent: no such file"),
        (["--log-dir", "/proc/nothing"], "--log-dir /proc/nothing"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--num-gateways", "2"], "--port 0 with --num-gateways 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(argv: list[str], reason: str) -> None:
    port = ["--port", "65000"] if "--host" in argv else ["--port", "0"]
    with pytest.raises(ConfigError, match=reason):
        check_machine(parse([*port, *argv]))


def test_a_context_longer_than_the_model_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--context-length 512"):
        check_model(parse(["--context-length", "512"]), model(tmp_path))


def test_a_tp_size_that_does_not_fit_the_heads_is_refused(tmp_path: Path) -> None:
    check_model(parse(["--tp-size", "2"]), model(tmp_path))
    with pytest.raises(ConfigError, match="--tp-size 4 does not fit the model's 9 query and 3 key-value heads"):
        check_model(parse(["--tp-size", "4"]), model(tmp_path))


def test_the_worker_agrees_on_which_tp_sizes_fit(tmp_path: Path) -> None:
    def worker_takes(config: ModelConfig, size: int) -> bool:
        try:
            shard_model(config, size, 0)
        except ConfigError:
            return False
        return True

    for kv_heads, group in itertools.product((1, 2, 3, 4, 8), (1, 2, 3, 4)):
        heads = kv_heads * group
        config = load_model_config(
            model(tmp_path, num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=8 * heads, head_dim=8)
        )
        for size in range(1, 17):
            assert heads_divide(heads, kv_heads, size) is worker_takes(config, size), (heads, kv_heads, size)
