"""Quantized checkpoints started as a user starts them, and ones that are damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.stack import Stack, free_port
from tests.fakes.vlm_checkpoints import QWEN_TEMPLATE, write_tokenizer
from tests.unit.worker.driver import Driver, make_engine
from tests.unit.worker.quantization.checkpoints import plain_checkpoint, quantized_checkpoint

CASES = ["awq 32", "gptq act-order 32", "compressed-tensors int4 symmetric 32",
         "compressed-tensors int8 zero points act-order", "fp8 block", "gguf Q4_1"]  # fmt: skip
PROMPT, NEW_TOKENS = "Once upon a time", 12
FLAGS = ("--num-threads", "1", "--max-total-tokens", "4096")


def checkpoint(case: str, folder: Path) -> tuple[Path, Path]:
    """A checkpoint in a format, with a tokenizer, and the plain one of the weights that it means."""
    plain = plain_checkpoint("llama", folder / "plain")
    quantized_checkpoint(plain, case, folder / "quantized", folder / "meant")
    write_tokenizer(folder / "quantized", QWEN_TEMPLATE)
    return folder / "quantized", folder / "meant"


def served(model: Path) -> tuple[list[int], list[int]]:
    """What a whole deployment makes of a prompt and generates after it, greedily."""
    running = Stack("--model-path", str(model), *FLAGS)
    try:
        running.wait_ready()
        sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
        body = {"text": PROMPT, "sampling_params": sampling}
        status, answer = running.post("/generate", body)
        assert status == 200, answer
        status, prompt = running.post("/tokenize", {"prompt": PROMPT})
        assert status == 200, prompt
        return list(prompt["tokens"]), list(answer["output_ids"])
    finally:
        assert running.stop() == 0


@pytest.mark.parametrize("case", CASES)
def test_a_quantized_checkpoint_answers_as_the_weights_that_it_means(case: str, tmp_path: Path) -> None:
    quantized, meant = checkpoint(case, tmp_path)
    prompt, tokens = served(quantized)
    assert [tokens] == Driver(make_engine(meant)).generate([prompt], NEW_TOKENS)


@pytest.mark.parametrize("harm", ["a width that nobody knows", "another method", "a wrong shape", "a broken file"])
def test_a_checkpoint_that_does_not_fit_ends_the_start_with_the_reason(harm: str, tmp_path: Path) -> None:
    quantized, _ = checkpoint("awq 32", tmp_path)
    config = json.loads((quantized / "config.json").read_text())
    weights = quantized / "model.safetensors"
    if harm == "a width that nobody knows":
        config["quantization_config"]["bits"] = 3
    elif harm == "another method":
        config["quantization_config"] = {"quant_method": "squeeze"}
    elif harm == "a wrong shape":
        tensors = load_file(weights)
        name = next(name for name in tensors if name.endswith("qweight"))
        save_file(tensors | {name: torch.zeros(3, 5, dtype=torch.int32)}, weights, metadata={"format": "pt"})
    else:
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
    (quantized / "config.json").write_text(json.dumps(config))
    said = refusal(quantized)
    expected = {
        "a width that nobody knows": "3", "another method": "squeeze", "a wrong shape": "qweight",
        "a broken file": "model.safetensors",
    }  # fmt: skip
    assert expected[harm] in said
    assert "Traceback" not in said


def refusal(model: Path) -> str:
    """What the launcher shows of a worker that cannot start; it gives up by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "rhizome.launch_server", "--model-path", str(model), "--port", str(free_port()), *FLAGS],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr + done.stdout
