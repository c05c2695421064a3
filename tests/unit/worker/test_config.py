"""Flags that contradict each other or make no sense end the start with their name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from services.worker.build import gpu_of
from services.worker.config import WorkerConfig
from services.worker.memory import CPU_POOL_BYTES, available_bytes, pool_tokens
from services.worker.tensor_parallel import shard_model
from shared.config import parse_config
from shared.errors import ConfigError
from shared.model_config import load_model_config


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"tp_size": 0}, "--tp-size"),
        ({"tp_size": 2, "tp_rank": 2, "dist_init_addr": "127.0.0.1:1"}, "--tp-rank"),
        ({"tp_size": 2}, "--dist-init-addr"),
        ({"dist_init_addr": "127.0.0.1:5"}, "--dist-init-addr"),
        ({"page_size": 0}, "--page-size"),
        ({"base_gpu_id": -1}, "--base-gpu-id"),
        ({"mem_fraction_static": 1.5}, "--mem-fraction-static"),
        ({"mem_fraction_static": 0.5, "max_total_tokens": 4096}, "--max-total-tokens"),
        ({"max_total_tokens": 3}, "--max-total-tokens"),
        ({"max_running_requests": -1}, "--max-running-requests"),
        ({"num_threads": -1}, "--num-threads"),
        ({"context_length": 0}, "--context-length"),
        ({"scheduler_name": "a b"}, "--scheduler-name"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WorkerConfig(model_path="/models/x", **flags)


def test_a_rank_takes_its_own_gpu_and_too_few_of_them_are_named() -> None:
    def rank(tp_rank: int, base_gpu_id: int) -> WorkerConfig:
        parallel = {"tp_size": 2, "dist_init_addr": "127.0.0.1:1"}
        return WorkerConfig(model_path="/models/x", tp_rank=tp_rank, base_gpu_id=base_gpu_id, **parallel)  # type: ignore[arg-type]

    assert [gpu_of(rank(r, base), 4) for base in (0, 2) for r in (0, 1)] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="--tp-size 2 from --base-gpu-id 3 on needs 5 GPUs, torch sees 4"):
        gpu_of(rank(0, 3), 4)


@pytest.mark.parametrize("argv", [["--dtype", "int3"], ["--attention-backend", "magic"], ["--no-such-flag"], []])
def test_unknown_values_and_a_missing_model_end_the_command(argv: list[str]) -> None:
    path = ["--model-path", "/models/x"] if argv else []
    with pytest.raises(SystemExit) as caught:
        parse_config(WorkerConfig, "worker", "", [*path, *argv])
    assert caught.value.code == 2


def test_clients_call_a_model_by_its_directory() -> None:
    assert WorkerConfig(model_path="/models/tiny").model_name == "tiny"


def pool(**changes: Any) -> int:
    arguments: dict[str, Any] = {
        "slot_bytes": 1000, "page_size": 16, "most_tokens": 10**9, "device": torch.device("cpu"),
        "max_total_tokens": None, "fraction": None, "available": 64 << 30,
        "total": 0, "activations": 0,
    }  # fmt: skip
    return pool_tokens(**{**arguments, **changes})


def test_the_pool_on_cpu_is_modest_by_default_and_whole_pages() -> None:
    assert pool() == CPU_POOL_BYTES // 1000 // 16 * 16
    assert pool(available=1 << 20) == 96
    assert pool(fraction=0.5) * 1000 > 30 << 30
    assert pool(max_total_tokens=100) == 96
    assert pool(most_tokens=50) == 48
    assert available_bytes(torch.device("cpu")) > 1 << 20


def test_a_pool_that_does_not_fit_is_a_start_up_error() -> None:
    with pytest.raises(ConfigError, match="--max-total-tokens"):
        pool(max_total_tokens=10**9)
    with pytest.raises(ConfigError, match="no KV page"):
        pool(available=1000)


def test_a_pool_on_a_gpu_gets_its_share_of_the_device_and_leaves_room_for_a_step() -> None:
    gpu = {"device": torch.device("cuda"), "total": 80 << 30, "available": 64 << 30}
    weights, share = 16 << 30, 72 << 30
    assert pool(**gpu) * 1000 == pytest.approx(share - weights, rel=1e-3)
    assert pool(**gpu, fraction=0.5) * 1000 == pytest.approx((40 << 30) - weights, rel=1e-3)
    assert pool(**gpu, activations=20 << 30) * 1000 == pytest.approx(44 << 30, rel=1e-3)
    with pytest.raises(ConfigError, match="no KV page"):
        pool(**gpu, fraction=0.1)


@pytest.mark.parametrize(("size", "heads"), [(1, [6]), (2, [3, 3]), (4, [1, 2, 1, 2])])
def test_query_heads_go_with_their_key_value_heads(llama: Any, size: int, heads: list[int]) -> None:
    config = load_model_config(llama[0])  # 6 query heads, 2 key-value heads
    if size == 4:
        with pytest.raises(ConfigError, match="--tp-size 4"):
            shard_model(config, 4, 0)
        return
    shards = [shard_model(config, size, rank) for rank in range(size)]
    assert [s.num_q_heads for s in shards] == heads
    assert all(s.num_q_heads == 3 * s.num_kv_heads for s in shards)
    assert sum(s.vocab_widths[r] for r, s in enumerate(shards)) == config.vocab_size


def test_key_value_heads_are_repeated_when_there_are_more_ranks(llama: Any) -> None:
    config = load_model_config(llama[0])
    shards = [shard_model(config, 6, rank) for rank in range(6)]
    assert [s.kv_heads.start for s in shards] == [0, 0, 0, 1, 1, 1]
    assert [s.q_heads.start for s in shards] == [0, 1, 2, 3, 4, 5]
