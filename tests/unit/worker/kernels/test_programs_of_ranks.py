"""Fixed programs on ranks with unequal numbers of heads: their parts of a sum must belong to the same requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from shared.messages.step import RowInit
from tests.unit.worker.driver import Driver, Extend, make_engine
from tests.unit.worker.ranks import Ranks

ROWS, PAGE = 11, 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs are tested in tests/gpu")
def test_ranks_with_unequal_heads_decode_rows_that_share_prefixes_in_the_same_order(tmp_path: Path) -> None:
    """One rank has a key-value head and attends more rows at the same time than the other, which has two."""
    set_seed(3)
    shape = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16, "hidden_size": 48}
    config = LlamaConfig(
        **shape, vocab_size=96, intermediate_size=48, num_hidden_layers=1, max_position_embeddings=64,
        initializer_range=0.7, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    driver = Driver(make_engine(tmp_path, attention_backend="torch", max_running_requests=ROWS))
    greedy = [RowInit(row, temperature=0.0) for row in range(ROWS)]
    prefixes = [list(range(3, 3 + PAGE)), list(range(40, 40 + PAGE))]
    results = [driver.run([Extend(row, [*prefixes[row], 7 + row]) for row in (0, 1)], new=greedy[:2])]
    first_pages = {row: driver.pages_of[row // 2 % 2][:1] for row in range(2, ROWS)}
    followers = [Extend(row, [20 + row], start=PAGE) for row in first_pages]
    results += [
        driver.run(followers, new=greedy[2:], shared_pages=first_pages),
        driver.run(decode=list(range(ROWS))),
        driver.run(decode=None),
    ]
    tokens = [result.tokens.tolist() for result in results]
    assert len(set(tokens[-1])) > ROWS // 2, "rows that all say the same would hide a confusion"
    flags = {"attention_backend": "triton", "dtype": "float32", "max_running_requests": ROWS}
    with Ranks(tmp_path, 2, **flags) as ranks:
        assert ranks.tokens(driver.sent) == tokens
