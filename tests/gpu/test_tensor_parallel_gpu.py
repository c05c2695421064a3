"""Two ranks on two GPUs against one, and what becomes of a rank whose other one is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, set_seed

from services.worker.engine_spec import EngineSpec
from services.worker.kernels.device import sm_count
from shared.bus import NatsBus
from shared.messages.step import EngineFault, RowInit, StepPlan, StepResult
from tests.gpu.shapes import write_shape
from tests.gpu.test_engine_gpu import SHAPE, SMALL_MODEL, TIE, WITH_EXPERTS, small_model
from tests.integration.rank_processes import lose_rank_1, rank_processes
from tests.unit.worker.driver import Driver, Extend, make_engine
from tests.unit.worker.ranks import Ranks

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "uneven": (LlamaConfig, LlamaForCausalLM, {
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 216, "vocab_size": 321}),
    "qwen3-moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, WITH_EXPERTS["qwen3-moe"][2]),
}  # fmt: skip
GREEDY_TIE = 1e-4
"""Two ranks add up in another order than one: fp32 logprobs this close may change places."""
LOST_WITHIN_S = 75.0
"""The group's timeout, and a quarter of it for noticing and ending."""


@dataclass
class Together:
    """Ranks as the engine of a `Driver`."""

    ranks: Ranks
    spec: EngineSpec

    def execute(self, plan: StepPlan) -> StepResult | EngineFault:
        return self.ranks.execute(plan)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint(name)` gives the directory of a tiny random model."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name == SMALL_MODEL:
            return small_model()
        if name not in made:
            config_class, model_class, changes = SHAPES[name]
            set_seed(11)
            made[name] = tmp_path_factory.mktemp(name)
            model_class(config_class(**{**SHAPE, **changes})).save_pretrained(made[name])
        return made[name]

    return get


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, SHAPE["vocab_size"], length).tolist() for length in (40, 1, 75, 17)]


def assert_greedy(path: Path, generated: list[list[int]], tie: float, **flags: Any) -> None:
    """Every token is the likeliest one by a single rank's operators, or as good as."""
    judge = make_engine(path, device="cuda", attention_backend="torch", **flags)
    for prompt, tokens in zip(prompts(), generated, strict=True):
        init = RowInit(0, temperature=0.0, top_logprobs_num=1)
        result = Driver(judge).run([Extend(0, prompt + tokens, lp_start=0)], new=[init])
        chosen, best = result.prompt_logprobs, result.prompt_top_logprobs
        assert chosen is not None
        assert best is not None
        assert (best[:, 0] - chosen)[-len(tokens) :].max() <= tie


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(("page_size", "chunk"), [(1, 1000), (16, 13)])
@pytest.mark.parametrize("name", [*SHAPES, SMALL_MODEL])
def test_fp32_greedy_tokens_of_two_ranks_are_those_of_one(
    checkpoint: Callable[[str], Path], name: str, page_size: int, chunk: int, graphs: bool
) -> None:
    """Rows prefill (in chunks) while earlier ones decode, then all decode."""
    path, flags = checkpoint(name), {"dtype": "float32", "page_size": page_size}
    alone = make_engine(path, device="cuda", attention_backend="triton", disable_cuda_graph=True, **flags)
    expected = Driver(alone).generate(prompts(), 24, chunk)
    with Ranks(path, 2, device="cuda", disable_cuda_graph=not graphs, **flags) as ranks:
        generated = Driver(Together(ranks, alone.spec)).generate(prompts(), 24, chunk)  # type: ignore[arg-type]
    if generated != expected:
        assert_greedy(path, generated, GREEDY_TIE, **flags)


def test_bf16_tokens_of_two_ranks_are_a_single_ranks_best_up_to_ties(checkpoint: Callable[[str], Path]) -> None:
    path, flags = checkpoint("llama"), {"dtype": "bfloat16"}
    alone = make_engine(path, device="cuda", attention_backend="triton", disable_cuda_graph=True, **flags)
    with Ranks(path, 2, device="cuda", **flags) as ranks:
        generated = Driver(Together(ranks, alone.spec)).generate(prompts(), 24, 13)  # type: ignore[arg-type]
    assert_greedy(path, generated, TIE, **flags)


def test_rows_that_share_prefixes_are_not_confused_when_they_are_more_than_the_device_takes_at_once(
    checkpoint: Callable[[str], Path],
) -> None:
    """Then decode steps order their rows by prefix, which both ranks must do alike, and sums take the large way."""
    path, page = checkpoint("uneven"), 16
    rows = 3 * sm_count(torch.device("cuda", 0)) + 5
    flags = {"dtype": "float32", "max_running_requests": rows, "max_total_tokens": 4 * page * rows}
    alone = make_engine(path, device="cuda", attention_backend="torch", **flags)
    driver = Driver(alone)
    greedy = [RowInit(row, temperature=0.0) for row in range(rows)]
    prefixes = [list(range(3, 3 + page)), list(range(40, 40 + page))]
    results = [driver.run([Extend(row, [*prefixes[row], 7 + row]) for row in (0, 1)], new=greedy[:2])]
    first_pages = {row: driver.pages_of[row // 2 % 2][:1] for row in range(2, rows)}
    followers = [Extend(row, [20 + row % 280], start=page) for row in first_pages]
    results.append(driver.run(followers, new=greedy[2:], shared_pages=first_pages))
    results += [driver.run(decode=list(range(rows))), driver.run(decode=None)]
    expected = np.concatenate([result.tokens for result in results])
    with Ranks(path, 2, device="cuda", **flags) as ranks:
        found = np.concatenate(ranks.tokens(driver.sent))
    assert len(set(expected[-rows:].tolist())) > 10
    assert (found != expected).mean() < 0.02  # confused rows would differ nearly all


def test_a_model_of_real_size_gives_the_same_first_tokens_on_two_ranks(tmp_path: Path) -> None:
    """Dummy weights are the same for every sharding; the judge sees bf16 ties."""
    folder = write_shape("0.6B", tmp_path / "0.6B")
    flags = {"load_format": "dummy", "context_length": 2048, "max_total_tokens": 8192}
    alone = make_engine(folder, device="cuda", **flags)
    prompt = np.random.default_rng(1).integers(0, 1000, 700).tolist()
    init = RowInit(0, temperature=0.0, return_logprob=True, top_logprobs_num=8)
    expected = Driver(alone).run([Extend(0, prompt)], new=[init])
    with Ranks(folder, 2, device="cuda", **flags) as ranks:
        found = Driver(Together(ranks, alone.spec)).run([Extend(0, prompt)], new=[init])  # type: ignore[arg-type]
    assert expected.top_ids is not None
    assert found.tokens[0] in expected.top_ids[0]
    np.testing.assert_allclose(found.top_logprobs, expected.top_logprobs, atol=TIE)


def test_a_plan_after_the_death_of_a_rank_fails_at_once(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("llama")
    alone = make_engine(path, device="cuda", dtype="float32", disable_cuda_graph=True)
    with Ranks(path, 2, device="cuda", dtype="float32") as ranks:
        driver = Driver(Together(ranks, alone.spec))  # type: ignore[arg-type]
        driver.run([Extend(0, [5, 6, 7])], new=[RowInit(0, temperature=0.0)])
        ranks.processes[1].kill()
        ranks.processes[1].join()
        ranks.tell(0, driver.plan(decode=[0]))
        assert ranks.answer(0).startswith("RuntimeError")


async def test_the_process_of_a_rank_ends_when_the_other_is_killed_under_load(
    checkpoint: Callable[[str], Path], nats_url: str, nats_bus: NatsBus
) -> None:
    """Its device may wait for ever in a sum: the process must end all the same."""
    with rank_processes(checkpoint("llama"), nats_url, 2, "--device=cuda") as processes:
        status, seconds = await lose_rank_1(processes, nats_bus, plans=400)
    assert status != 0
    assert seconds < LOST_WITHIN_S
