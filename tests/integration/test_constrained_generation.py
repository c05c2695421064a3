"""Scheduler and worker together under grammars: jumps, depth, pages and backend change no token and no logprob."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shared.sampling import NEUTRAL, SamplingParams
from tests.fakes.grammar import Automaton, random_automaton
from tests.fakes.real_engine import real_driver
from tests.fakes.scheduler_driver import EOS, Output

VOCAB, MOST = 300, 70
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SAMPLING = {
    "greedy": dataclasses.replace(NEUTRAL, temperature=0.0),
    "seeded": dataclasses.replace(NEUTRAL, temperature=0.9, seed=11, top_p=0.95),
    "penalised": dataclasses.replace(NEUTRAL, temperature=0.0, frequency_penalty=0.8, repetition_penalty=1.3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(11)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
        )
    )  # fmt: skip
    for parameter in model.parameters():  # spread the logits: a random model must not decide by rounding
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    return path


def work() -> list[tuple[list[int], Automaton]]:
    rng = np.random.default_rng(8)
    return [
        (rng.integers(3, VOCAB, int(rng.integers(1, 60))).tolist(), random_automaton(rng, 30, VOCAB)) for _ in range(6)
    ]


def generate(
    folder: Path, sampling: SamplingParams, *, jump: bool, depth: int, page_size: int, **engine: str
) -> list[Output]:
    driver = real_driver(
        folder, page_size=page_size, chunk=64, depth=depth, pool_tokens=2048, disable_jump_forward=not jump, **engine
    )
    handles = [
        driver.submit(prompt, MOST, grammar=grammar, sampling=sampling, logprob_start=-1) for prompt, grammar in work()
    ]
    driver.submit([9, 8, 7], 20, sampling=sampling, ignore_eos=True)
    driver.run()
    driver.check()
    if jump:
        assert any(plan.ext_forced is not None for plan in driver.history)
    return [driver.outputs[handle] for handle in handles]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", SAMPLING)
def test_jumps_depth_and_pages_change_nothing(folder: Path, kind: str, device: str) -> None:
    want = generate(folder, SAMPLING[kind], jump=False, depth=1, page_size=1, device=device)
    for output, (_, grammar) in zip(want, work(), strict=True):
        assert len(output.tokens) == MOST or grammar.accepts(output.tokens, frozenset({EOS}))
        assert len(output.logprobs) == len(output.tokens)
    for jump, depth, page_size in ((True, 1, 1), (True, 2, 16), (True, 3, 1), (False, 3, 16)):
        got = generate(folder, SAMPLING[kind], jump=jump, depth=depth, page_size=page_size, device=device)
        assert [output.tokens for output in got] == [output.tokens for output in want]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-3, atol=1e-3)


def test_operators_and_compiled_kernels_agree(folder: Path) -> None:
    outputs = [
        generate(folder, SAMPLING["greedy"], jump=True, depth=2, page_size=16, backend=name)
        for name in ("torch", "numba")
    ]
    assert [output.tokens for output in outputs[0]] == [output.tokens for output in outputs[1]]
