"""Whole engines on a CUDA device: kernels against operators, and models of real size with random weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers import set_seed as set_transformers_seed

from rhizome.models import DEFAULT_MODEL, store
from services.worker.attention.flashinfer_modules import flashinfer_obstacle
from services.worker.engine import Engine
from shared.checkpoint.loader import load_dummy
from shared.checkpoint.target import Target
from shared.messages.step import RowInit
from shared.sampling import SamplingParams
from tests.fakes.real_engine import real_driver
from tests.gpu.shapes import SHAPES, write_shape
from tests.unit.worker.driver import Driver, Extend, make_engine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512, "eos_token_id": 2, "bos_token_id": 1,
    "initializer_range": 0.15, "pad_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
}
WITH_EXPERTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3-moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {
        "num_experts": 24, "num_experts_per_tok": 4, "moe_intermediate_size": 80, "norm_topk_prob": True}),
}  # fmt: skip
"""Not for bfloat16: where two experts are nearly as likely, rounding decides which one a token goes to."""
SMALL_MODEL = DEFAULT_MODEL
"""Trained weights, not random ones."""
TIE = 0.26
NO_FLASHINFER = torch.cuda.is_available() and flashinfer_obstacle(torch.device("cuda", 0), torch.bfloat16, 64)
needs_flashinfer = pytest.mark.skipif(bool(NO_FLASHINFER), reason=f"flashinfer: {NO_FLASHINFER}")
"""Logprobs this close may change places: two units in the last place of bfloat16 logits between 16 and 32."""


def small_model() -> Path:
    """Where the launcher keeps its default model."""
    folder = store.model_dir(DEFAULT_MODEL)
    if not store.is_complete(folder):
        pytest.skip(f"{DEFAULT_MODEL} is not in the model cache: start the launcher once")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint(family)` gives the directory of a tiny random model."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family == SMALL_MODEL:
            return small_model()
        if family not in made:
            config_class, model_class, changes = (FAMILIES | WITH_EXPERTS)[family]
            set_transformers_seed(11)
            made[family] = tmp_path_factory.mktemp(family)
            model_class(config_class(**{**SHAPE, **changes})).save_pretrained(made[family])
        return made[family]

    return get


@pytest.fixture(autouse=True)
def empty_device() -> Iterator[None]:
    """Engines of one test leave nothing to the next."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, SHAPE["vocab_size"], length).tolist() for length in (40, 1, 75, 17)]


def cuda_engine(path: Path, backend: str, **flags: Any) -> Engine:
    return make_engine(path, device="cuda", attention_backend=backend, **flags)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(("page_size", "chunk"), [(1, 1000), (16, 13)])
@pytest.mark.parametrize("family", [*FAMILIES, *WITH_EXPERTS, SMALL_MODEL])
def test_fp32_greedy_tokens_of_both_backends_are_equal(
    checkpoint: Callable[[str], Path], family: str, chunk: int, page_size: int, graphs: bool
) -> None:
    """Rows prefill (in chunks) while earlier ones decode, then all decode."""
    ours, theirs = (
        Driver(
            cuda_engine(
                checkpoint(family), backend, dtype="float32", page_size=page_size, disable_cuda_graph=not graphs
            )
        ).generate(prompts(), 24, chunk)
        for backend in ("triton", "torch")
    )
    assert ours == theirs


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("family", [*FAMILIES, SMALL_MODEL])
@pytest.mark.parametrize("backend", ["triton", pytest.param("flashinfer", marks=needs_flashinfer)])
def test_bf16_greedy_tokens_of_kernels_are_the_operators_best_up_to_ties(
    checkpoint: Callable[[str], Path], backend: str, family: str, page_size: int, graphs: bool
) -> None:
    """Prompts in chunks of 13 tokens, and all in one step, which is larger than any program of this engine."""
    flags = {"dtype": "bfloat16", "page_size": page_size, "max_prefill_tokens": 16}
    if backend == "flashinfer":
        flags["decode_attention_backend"] = "flashinfer"
    engine = cuda_engine(checkpoint(family), backend, disable_cuda_graph=not graphs, **flags)
    generated = [tokens for chunk in (13, 1000) for tokens in Driver(engine).generate(prompts(), 24, chunk)]
    judge = cuda_engine(checkpoint(family), "torch", **flags)
    for prompt, tokens in zip(prompts() * 2, generated, strict=True):
        init = RowInit(0, temperature=0.0, top_logprobs_num=1)
        result = Driver(judge).run([Extend(0, prompt + tokens, lp_start=0)], new=[init])
        chosen, best = result.prompt_logprobs, result.prompt_top_logprobs
        assert chosen is not None
        assert best is not None
        assert (best[:, 0] - chosen)[-len(tokens) :].max() <= TIE


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_scheduler_sends_steps_ahead_and_the_small_model_s_tokens_stay_the_same(depth: int) -> None:
    driver = real_driver(
        small_model(), page_size=16, chunk=32, depth=depth, pool_tokens=4096, backend="triton", device="cuda"
    )
    greedy = SamplingParams(temperature=0.0)
    handles = [driver.submit(prompt, 24, sampling=greedy, ignore_eos=True) for prompt in prompts()]
    driver.run()
    judge = Driver(cuda_engine(small_model(), "torch", dtype="float32"))
    assert [driver.outputs[handle].tokens for handle in handles] == judge.generate(prompts(), 24)


@pytest.mark.parametrize(
    ("backend", "chosen"), [("triton", "triton"), pytest.param("flashinfer", "flashinfer", marks=needs_flashinfer)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_real_size_prefills_and_decodes(shape: str, backend: str, chosen: str, tmp_path: Path) -> None:
    """In small steps, and in one that is larger than any program."""
    folder = write_shape(shape, tmp_path / shape)
    engine = make_engine(
        folder, device="cuda", load_format="dummy", context_length=2560, max_total_tokens=8192,
        attention_backend=backend,
    )  # fmt: skip
    assert (engine.spec.attention_backend, engine.spec.dtype) == (chosen, "bfloat16")
    prompt = np.random.default_rng(1).integers(0, SHAPES[shape]["vocab_size"], 2300).tolist()
    generated = [
        *Driver(engine).generate([prompt[:700], prompt[:5]], 6, chunk=512),
        *Driver(engine).generate([prompt], 6, chunk=len(prompt)),
    ]
    assert [len(tokens) for tokens in generated] == [6, 6, 6]
    assert all(0 <= token < SHAPES[shape]["vocab_size"] for tokens in generated for token in tokens)


def test_an_unknown_token_row_is_refused_on_a_gpu_too(checkpoint: Callable[[str], Path]) -> None:
    driver = Driver(cuda_engine(checkpoint("llama"), "triton"))
    assert "no sampled token" in driver.fault(driver.plan(decode=[0])).message


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("page_size", [1, 16])
def test_rows_that_share_a_prefix_get_the_tokens_that_operators_give(
    checkpoint: Callable[[str], Path], page_size: int, graphs: bool
) -> None:
    """Thirty rows begin with the same pages; then one of them belongs to a request with another prompt."""
    shared, count, rng = 192, 30, np.random.default_rng(3)
    prefix = rng.integers(3, 300, shared).tolist()
    tails = [rng.integers(3, 300, 1 + row % 3).tolist() for row in range(count)]
    others, outputs = range(1, count), []
    for backend in ("triton", "torch"):
        driver = Driver(
            cuda_engine(
                checkpoint("llama"), backend, dtype="float32", max_running_requests=count, max_total_tokens=8192,
                page_size=page_size, disable_cuda_graph=not graphs,
            )
        )  # fmt: skip
        runs = [
            driver.run([Extend(0, prefix + tails[0])], new=[RowInit(0, temperature=0.0)]),
            driver.run(
                [Extend(row, tails[row], start=shared) for row in others],
                new=[RowInit(row, temperature=0.0) for row in others],
                shared_pages=dict.fromkeys(others, driver.pages_of[0][: shared // page_size]),
            ),
        ]
        runs += [driver.run(decode=list(range(count))) for _ in range(4)]
        runs.append(driver.run([Extend(5, [9, 8, 7])], decode=[0, 1, 2], new=[RowInit(5, temperature=0.0)]))
        runs += [driver.run(decode=list(range(count))) for _ in range(4)]
        outputs.append([run.tokens.tolist() for run in runs])
    assert outputs[0] == outputs[1]


class Recording:
    """A sampler that keeps the logits it was given."""

    def __init__(self, engine: Engine) -> None:
        self._inner, self.logits = engine._sampler, torch.empty(0)
        engine._sampler = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sample(self, logits: torch.Tensor, rows: np.ndarray, at: torch.Tensor) -> Any:
        self.logits = logits.float().cpu()
        assert self._inner is not None
        return self._inner.sample(logits, rows, at)


def load_calm(targets: Mapping[str, Target]) -> None:
    """Random weights of half the size, rounded to bfloat16: what is compared is then arithmetic, not storage.

    Random layers of twice this size amplify every rounding, that of operators as well.
    """
    load_dummy(targets)
    for target in targets.values():
        if not target.is_norm:
            target.into.copy_(target.into.mul(0.5).bfloat16())


@pytest.mark.parametrize("backend", ["torch", "triton", pytest.param("flashinfer", marks=needs_flashinfer)])
@torch.inference_mode()
def test_logits_of_the_8b_shape_are_those_of_fp32(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of 700 tokens and the step after it."""
    monkeypatch.setattr("services.worker.build.load_dummy", load_calm)
    folder, found = write_shape("8B", tmp_path / "8B"), []
    prompt = np.random.default_rng(1).integers(0, SHAPES["8B"]["vocab_size"], 700).tolist()
    for name, dtype in (("torch", "float32"), (backend, "bfloat16")):
        engine = make_engine(
            folder, device="cuda", load_format="dummy", context_length=1024, max_total_tokens=2048,
            attention_backend=name, dtype=dtype, disable_cuda_graph=True, max_running_requests=2,
        )  # fmt: skip
        recording, driver = Recording(engine), Driver(engine)
        driver.run([Extend(0, prompt)], new=[RowInit(0, logit_bias={"7": 100.0}, temperature=0.0)])
        first = recording.logits
        driver.run(decode=[0])
        found.append((first, recording.logits))
        del engine, recording, driver
        gc.collect()
        torch.cuda.empty_cache()
    errors = [float((got - want).norm() / want.norm()) for want, got in zip(*found, strict=True)]
    assert max(errors) <= 2e-2, errors
