"""A rank that is killed in the middle of its work takes the others with it, at once and with status 1."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from shared.bus import NatsBus
from tests.integration.rank_processes import lose_rank_1, rank_processes

SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
LOST_WITHIN_S = 10.0
"""Broken connections tell at once; the group's timeout is 60 s, that of silence 15 s."""


async def test_a_killed_rank_ends_the_one_that_waits_for_it(tmp_path: Path, nats_url: str, nats_bus: NatsBus) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    flags = ("--device=cpu", "--attention-backend=torch")
    with rank_processes(tmp_path, nats_url, 2, *flags) as processes:
        status, seconds = await lose_rank_1(processes, nats_bus, plans=400)
    assert status == 1
    assert seconds < LOST_WITHIN_S
