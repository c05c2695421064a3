"""Launches that cover the kernels at the shapes served on a Hopper card, those for quantized weights excepted
(`quantized_cases.py`); compiled by `compile_sm90`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from services.worker.kernels.expert_mlp import expert_config, expert_mlp
from services.worker.kernels.expert_routing import route
from services.worker.kernels.extend_attention import extend_attention
from services.worker.kernels.extend_plan import ExtendConfig, extend_config, plan_extend
from services.worker.kernels.page_indices import page_indices
from services.worker.kernels.rms_norm import add_rms_norm, head_rms_norm, rms_norm
from services.worker.kernels.rotary import rotate_and_store
from services.worker.kernels.sampling import sample
from services.worker.kernels.sampling_table import sampling_table
from services.worker.kernels.sampling_workspace import sampling_workspace
from services.worker.kernels.shared_attention import Sharing, shared_attention, shared_workspace
from services.worker.kernels.silu_and_mul import silu_and_mul
from services.worker.kernels.split_attention import split_attention
from services.worker.kernels.split_plan import SplitConfig, plan_split, split_workspace
from services.worker.kernels.token_logprobs import token_logprobs

CPU = torch.device("cpu")
CASES: dict[str, Callable[[], None]] = {}


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _elementwise() -> None:
    for hidden in (1024, 4096):
        x, residual, weight = empty(2, hidden), empty(2, hidden), empty(hidden)
        rms_norm(x, weight, 1e-6, x)
        add_rms_norm(x, residual, weight, 1e-6, x)
    head_rms_norm(empty(2, 16, 128), empty(128), 1e-6)
    silu_and_mul(empty(2, 2 * 14336), empty(2, 14336))
    norm = (empty(128), empty(128), 1e-6)
    for heads, qk_norm in ((32, None), (16, norm)):
        rotate_and_store(
            empty(2, (heads + 16) * 128), ints(2), empty(64, 128, dtype=torch.float32),
            empty(64, 8, 128), empty(64, 8, 128), ints(2), heads, qk_norm,
        )  # fmt: skip


CASES["elementwise"] = _elementwise

SPLIT_CANDIDATES = [
    SplitConfig(block_n, warps, stages, ctas)
    for block_n, warps, stages, ctas in [
        (64, 4, 3, 2), (64, 4, 3, 3), (64, 4, 3, 4), (64, 4, 5, 2), (32, 4, 3, 4), (32, 4, 5, 4), (32, 2, 3, 6),
        (32, 2, 5, 6), (64, 8, 5, 2), (128, 8, 3, 2), (128, 4, 3, 2),
    ]
]  # fmt: skip


def split_case(
    config: SplitConfig | None = None,
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    page_size: int = 1,
    max_q_len: int = 1,
    window: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
) -> Callable[[], None]:
    """One decode launch."""

    def launch() -> None:
        workspace = split_workspace(
            4, num_q_heads, num_kv_heads, head_dim, kv_dtype or dtype, CPU,
            max_q_len=max_q_len, window=window, config=config,
        )  # fmt: skip
        cu_q = ints(4) if max_q_len > 1 else None
        plan_split(workspace, ints(3), cu_q)
        pool = empty(64, num_kv_heads, head_dim, dtype=kv_dtype or dtype)
        q = empty(3, num_q_heads, head_dim, dtype=dtype)
        split_attention(
            q, pool, pool, ints(4, 64), ints(3), ints(3), workspace, torch.empty_like(q),
            page_size=page_size, scale=1.0, cu_q=cu_q,
        )  # fmt: skip

    return launch


for _config in SPLIT_CANDIDATES:
    CASES[
        f"candidate decode n{_config.block_n} w{_config.num_warps} s{_config.num_stages} c{_config.ctas_per_sm} D128 g4"
    ] = split_case(_config)
CASES["decode D128 g4 page16"] = split_case(page_size=16)
CASES["decode D128 g2 page1"] = split_case(num_q_heads=16)
CASES["decode D64 g4"] = split_case(head_dim=64)
CASES["decode D80 g1"] = split_case(num_q_heads=8, head_dim=80)
CASES["decode D96 g1"] = split_case(num_q_heads=8, head_dim=96)
CASES["decode D256 g8"] = split_case(num_q_heads=8, num_kv_heads=1, head_dim=256)
CASES["decode D128 g16"] = split_case(num_q_heads=16, num_kv_heads=1)
CASES["decode D128 g4 window"] = split_case(window=4096)
CASES["decode D128 g4 8 queries"] = split_case(max_q_len=8)
CASES["decode D128 g4 fp16"] = split_case(dtype=torch.float16)
CASES["decode D128 g4 fp32"] = split_case(dtype=torch.float32)
CASES["decode D128 g4 fp8 kv"] = split_case(kv_dtype=torch.float8_e4m3fn)

SHARED_CANDIDATES = [
    SplitConfig(block_n, warps, stages, ctas)
    for block_n, warps, stages, ctas in [(64, 4, 3, 2), (64, 4, 4, 2), (32, 4, 4, 2), (64, 8, 3, 2), (64, 4, 2, 3)]
]


def shared_case(
    config: SplitConfig | None = None, num_q_heads: int = 32, head_dim: int = 128, page_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> Callable[[], None]:  # fmt: skip
    """A decode launch whose rows share prefixes."""

    def launch() -> None:
        shared = shared_workspace(4, num_q_heads, 8, head_dim, dtype, CPU, config=config)
        own = split_workspace(4, num_q_heads, 8, head_dim, dtype, CPU)
        sharing = Sharing(ints(3), ints(3), ints(3), ints(3), ints(4), ints(3), ints(3))
        plan_split(shared.split, sharing.lens)
        plan_split(own, ints(3), starts=sharing.starts)
        pool, q = empty(64, 8, head_dim, dtype=dtype), empty(3, num_q_heads, head_dim, dtype=dtype)
        shared_attention(q, pool, pool, ints(4, 64), sharing, shared, page_size=page_size, scale=1.0)
        split_attention(
            q, pool, pool, ints(4, 64), ints(3), ints(3), own, torch.empty_like(q),
            page_size=page_size, scale=1.0, shared=(sharing, shared),
        )  # fmt: skip

    return launch


for _shared in SHARED_CANDIDATES:
    CASES[
        f"candidate shared n{_shared.block_n} w{_shared.num_warps} s{_shared.num_stages} c{_shared.ctas_per_sm} D128 g4"
    ] = shared_case(_shared)
CASES["shared D128 g4 page16"] = shared_case(page_size=16)
CASES["shared D128 g4"] = shared_case()
CASES["shared D128 g2"] = shared_case(num_q_heads=16)
CASES["shared D64 g4"] = shared_case(head_dim=64)
CASES["shared D256 g4"] = shared_case(head_dim=256)
CASES["shared D128 g4 fp32"] = shared_case(dtype=torch.float32)

EXTEND_CANDIDATES = [
    ExtendConfig(*shape)
    for shape in [
        (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 8, 5), (64, 64, 4, 3), (128, 64, 4, 3),
        (64, 128, 4, 3), (128, 32, 4, 3),
    ]
]  # fmt: skip


def extend_case(
    config: ExtendConfig | None = None,
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    page_size: int = 1,
    window: int = 0,
    lines: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
) -> Callable[[], None]:
    """One prefill launch."""

    def launch() -> None:
        pool = empty(64, num_kv_heads, head_dim, dtype=kv_dtype or dtype)
        q = empty(3, num_q_heads, head_dim, dtype=dtype)
        plan = plan_extend(
            ints(3), 3, num_q_heads // num_kv_heads, config or extend_config(head_dim, pool.itemsize, lines)
        )
        extend_attention(
            q, pool, pool, ints(4, 64), ints(2), ints(2), ints(3), plan, torch.empty_like(q),
            page_size=page_size, scale=1.0, window=window,
        )  # fmt: skip

    return launch


for _extend in EXTEND_CANDIDATES:
    CASES[
        f"candidate extend m{_extend.block_m} n{_extend.block_n} w{_extend.num_warps} s{_extend.num_stages} D128 g4"
    ] = extend_case(_extend)
CASES["extend D128 g4 page16"] = extend_case(page_size=16)
CASES["extend D128 g4 page16 window"] = extend_case(page_size=16, window=4096)
CASES["extend D128 g4 short"] = extend_case(lines=32)
CASES["extend D128 g4 medium"] = extend_case(lines=64)
CASES["extend D64 g4"] = extend_case(head_dim=64)
CASES["extend D80 g1"] = extend_case(num_q_heads=8, head_dim=80)
CASES["extend D256 g8"] = extend_case(num_q_heads=8, num_kv_heads=1, head_dim=256)
CASES["extend D128 g7"] = extend_case(num_q_heads=28, num_kv_heads=4)
CASES["extend D128 g4 fp32"] = extend_case(dtype=torch.float32)
CASES["extend D128 g4 fp8 kv"] = extend_case(kv_dtype=torch.float8_e4m3fn)


CASES["page indices"] = lambda: page_indices(ints(4, 64), ints(3), ints(4), ints(64))


def _sampling(vocab_size: int, dtype: torch.dtype) -> Callable[[], None]:
    def launch() -> None:
        table = sampling_table(4, vocab_size, CPU)
        workspace = sampling_workspace(3, vocab_size, CPU)
        sample(empty(3, vocab_size, dtype=dtype), ints(3), table, workspace, ints(3), empty(3, dtype=torch.float32))

    return launch


CASES["sampling V128256 fp32"] = _sampling(128256, torch.float32)
CASES["sampling V151936 bf16"] = _sampling(151936, torch.bfloat16)

MOE_SHAPES = {"Mixtral-8x7B": (8, 2, 4096, 14336), "Qwen3-30B-A3B": (128, 8, 2048, 768)}
"""Experts, experts a token, hidden size, expert intermediate size."""


def _experts(name: str, tokens: int, load: float) -> Callable[[], None]:
    def launch() -> None:
        num_experts, top_k, hidden, intermediate = MOE_SHAPES[name]
        weights, experts = route(empty(tokens, num_experts, dtype=torch.float32), top_k, renormalize=True)
        configs = expert_config(load, gated=True), expert_config(load, gated=False)
        expert_mlp(
            empty(tokens, hidden), empty(1, 2 * intermediate, hidden).expand(num_experts, -1, -1),
            empty(1, hidden, intermediate).expand(num_experts, -1, -1), weights, experts, None, configs,
        )  # fmt: skip

    return launch


for _name in MOE_SHAPES:
    for _load in (1, 32, 128, 1024):
        CASES[f"experts {_name} load {_load}"] = _experts(_name, 2 if _load == 1 else 600, _load)


def _token_logprobs() -> None:
    token_logprobs(empty(3, 128256), ints(3))


CASES["token logprobs"] = _token_logprobs
