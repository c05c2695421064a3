from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rhizome.launch_config import SERVICE_CONFIGS, LaunchConfig, parse
from shared.config import flag_name, flat_fields

ROOT = Path(__file__).parents[3]


def test_defaults_start_one_of_each_with_the_small_model() -> None:
    launch = parse([])
    assert (launch.own.num_gateways, launch.own.num_tokenizers, launch.own.num_engines, launch.own.tp_size) == (
        1,
        1,
        1,
        1,
    )
    assert launch.own.model_path == launch.tokenizer.model_path == launch.worker.model_path == "SmolLM2-135M-Instruct"
    assert launch.gateway.port == 30000


def test_a_flag_reaches_every_service_that_has_it() -> None:
    launch = parse(["--log-level", "debug", "--deployment", "blue", "--tp-size", "3", "--context-length", "512"])
    for config in (launch.gateway, launch.tokenizer, launch.scheduler, launch.worker):
        assert (config.common.log_level, config.common.deployment) == ("debug", "blue")
    assert launch.own.tp_size == launch.worker.tp_size == 3
    assert launch.tokenizer.context_length == launch.worker.context_length == 512


def test_a_flag_means_the_same_wherever_it_exists() -> None:
    meanings: dict[str, set[Any]] = defaultdict(set)
    for cls in SERVICE_CONFIGS.values():
        for f, tp in flat_fields(cls):
            default = "required" if f.default is dataclasses.MISSING else f.default
            meanings[f.name].add((str(tp), default))
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--tp", "2"], "unrecognized arguments: --tp 2"),
        (["--num-engines", "0"], "--num-engines 0: use a positive number"),
        (["--port", "70000"], "--port 70000"),
        (["--port", "x"], "invalid int value: 'x'"),
        (["--log-level", "loud"], "invalid choice: 'loud'"),
        (["--nats-url", "nats://h:1", "--nats-port", "4222"], "leave it out with --nats-url"),
        (["--mem-fraction-static", "0.5", "--max-total-tokens", "4096"], "both size the KV pool"),
        (["--tp-rank", "1"], "unrecognized arguments"),
        (["--name", "x"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_ends_at_once_with_the_reason(
    argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(argv)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_wrong_environment_variable_ends_at_once_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RHIZOME_MAX_N", "many")
    with pytest.raises(SystemExit):
        parse([])
    assert "RHIZOME_MAX_N='many'" in capsys.readouterr().err


def test_help_lists_every_flag_of_every_service(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    hidden = {"name", "metrics_port", "tp_rank", "dist_init_addr", "scheduler_name", "tokenizer_path"}
    names = {f.name for cls in (LaunchConfig, *SERVICE_CONFIGS.values()) for f, _ in flat_fields(cls)} - hidden
    assert [name for name in names if f"  {flag_name(name)}" not in shown] == []


def test_help_loads_neither_torch_nor_a_service() -> None:
    program = (
        "import sys\n"
        "from rhizome.launch_server import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'aiohttp', 'gguf', 'huggingface_hub', 'nats'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)), [m for m in sys.modules if m.endswith('.service')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED [] []"
