from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from services.scheduler.request import Req
from shared import messages as m
from shared.sampling import NEUTRAL, SamplingParams


def request(sampling: SamplingParams = NEUTRAL, **fields: Any) -> Req:
    sampling = dataclasses.replace(sampling, max_new_tokens=10)
    msg = m.TokenizedRequest(
        rid="r", tokenizer_id="t", handle=1, input_ids=np.array([7, 8, 9], np.int32), sampling=sampling,
        eos_token_ids=[2], **fields,
    )  # fmt: skip
    return Req.from_message(msg, 100.0)


def test_end_of_sequence_and_stop_ids_end_a_request_unless_it_ignores_the_former() -> None:
    stops = dataclasses.replace(NEUTRAL, stop_token_ids=[5])
    assert request(stops).stop_ids == {2, 5}
    assert request(dataclasses.replace(stops, ignore_eos=True)).stop_ids == {5}


def test_the_deadline_counts_from_arrival() -> None:
    assert request(timeout_s=5.0).deadline_s == 105.0
    assert request().deadline_s == float("inf")


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    assert request().match_limit == 2


def test_positions_whose_logprobs_are_wanted_are_computed() -> None:
    assert request(return_logprob=True, logprob_start_len=2).match_limit == 1
    assert request(return_logprob=True, logprob_start_len=0).match_limit == 0
    assert request(return_logprob=True, logprob_start_len=-1).match_limit == 2
    assert request(return_logprob=False, logprob_start_len=0).match_limit == 2


def test_a_row_gets_the_sampling_parameters() -> None:
    row = request(
        SamplingParams(
            temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, seed=7, presence_penalty=0.2, frequency_penalty=0.3,
            logit_bias={"5": 1.0},
        ),
        return_logprob=True, top_logprobs_num=3,
    ).row_init(4)  # fmt: skip
    assert (row.row, row.temperature, row.top_p, row.top_k, row.min_p) == (4, 0.5, 0.9, 40, 0.1)
    assert (row.seed, row.presence_penalty, row.frequency_penalty, row.logit_bias) == (7, 0.2, 0.3, {"5": 1.0})
    assert (row.return_logprob, row.top_logprobs_num) == (True, 3)


def test_stop_ids_travel_only_where_they_are_masked() -> None:
    assert request().row_init(0).stop_ids == []
    assert request(dataclasses.replace(NEUTRAL, min_new_tokens=3)).row_init(0).stop_ids == [2]


def test_tokens_travel_only_for_penalties_that_look_at_them() -> None:
    for sampling, history, output in (
        (NEUTRAL, [], []),
        (dataclasses.replace(NEUTRAL, presence_penalty=0.5), [], [50, 51]),
        (dataclasses.replace(NEUTRAL, repetition_penalty=1.1), [7, 8, 9], [50, 51]),
    ):
        req = request(sampling)
        req.ids = np.array([7, 8, 9, 50, 51], np.int32)  # after a retraction
        req.num_generated = 2
        row = req.row_init(0)
        assert (row.history_ids, row.output_ids, row.num_generated) == (history, output, 2)
