"""Demands for embeddings: answered once, asked again when their instance is gone or silent."""

from __future__ import annotations

import pytest

from services.tokenizer.media.demands import MAX_ASKS, Demand, Demands
from shared import messages as m
from shared.errors import InvalidRequest, Unavailable

SOURCES = [m.MediaSource("data:,a"), m.MediaSource("data:,b")]
MEDIA = [m.EncodedMedia("image", m.EmbeddingRef(f"{i:032x}", "v", "/x", 3, 4, "float32")) for i in range(3)]


def accepted(demands: Demands, vision_id: str = "vision-0", at_s: float = 0.0) -> Demand:
    demand = demands.open("r", SOURCES)
    if vision_id:
        demand.accepted(vision_id, at_s)
    return demand


async def test_each_demand_gets_its_own_answer() -> None:
    demands = Demands()
    first, second = accepted(demands), accepted(demands)
    assert first.handle != second.handle
    demands.encoded(m.MediaEncoded("vision-0", second.handle, MEDIA[1:]))
    demands.encoded(m.MediaEncoded("vision-0", first.handle, MEDIA[:2]))
    assert (first.answer.result(), second.answer.result()) == (MEDIA[:2], MEDIA[1:])


async def test_an_error_is_raised_as_vision_said_it() -> None:
    demands = Demands()
    demand = accepted(demands)
    error = m.ErrorInfo("invalid_request", "not an image", "messages[0].content[0].image_url.url")
    demands.encoded(m.MediaEncoded("vision-0", demand.handle, error=error))
    with pytest.raises(InvalidRequest, match="not an image") as refused:
        demand.answer.result()
    assert refused.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_an_answer_of_another_number_of_media_is_an_error(count: int) -> None:
    demands = Demands()
    demand = accepted(demands)
    demands.encoded(m.MediaEncoded("vision-0", demand.handle, MEDIA[:count]))
    with pytest.raises(Unavailable, match=f"{count} of 2"):
        demand.answer.result()


async def test_only_the_first_answer_counts_and_strangers_are_ignored() -> None:
    demands = Demands()
    demand = accepted(demands)
    demands.encoded(m.MediaEncoded("vision-1", demand.handle, MEDIA[:2]))
    demands.encoded(m.MediaEncoded("vision-0", demand.handle, MEDIA[1:]))
    demands.encoded(m.MediaEncoded("vision-0", 4711, MEDIA[:2]))
    assert demand.answer.result() == MEDIA[:2]


async def test_a_lost_instance_gives_back_what_it_has_not_answered_once() -> None:
    demands = Demands()
    answered, open_, elsewhere = accepted(demands), accepted(demands), accepted(demands, "vision-1")
    demands.encoded(m.MediaEncoded("vision-0", answered.handle, MEDIA[:2]))
    assert demands.lost("vision-0") == [open_]
    assert demands.lost("vision-0") == []  # whoever asks again for it says who has it then
    assert demands.lost("vision-1") == [elsewhere]


async def test_overdue_is_what_was_accepted_long_ago_and_not_what_nobody_has_taken() -> None:
    demands = Demands()
    old = accepted(demands, at_s=0.0)
    accepted(demands, at_s=50.0)
    accepted(demands, vision_id="", at_s=0.0)
    assert demands.overdue(60.0, 45.0) == [old]
    assert demands.overdue(60.0, 45.0) == []


async def test_a_closed_demand_is_forgotten() -> None:
    demands = Demands()
    demand = accepted(demands)
    demands.close(demand)
    demands.close(demand)
    demands.encoded(m.MediaEncoded("vision-0", demand.handle, MEDIA[:2]))
    assert demand.given_up
    assert demands.lost("vision-0") == []


async def test_a_demand_is_given_up_only_without_an_answer() -> None:
    demands = Demands()
    answered, failed = accepted(demands), accepted(demands)
    demands.encoded(m.MediaEncoded("vision-0", answered.handle, MEDIA[:2]))
    demands.encoded(m.MediaEncoded("vision-0", failed.handle))
    for demand in (answered, failed):
        demands.close(demand)
        assert not demand.given_up
    assert failed.answer.exception() is not None


async def test_media_that_every_instance_is_lost_over_are_taken_for_the_cause() -> None:
    demands = Demands()
    demand = accepted(demands)
    for _ in range(MAX_ASKS - 1):
        assert demands.lost("vision-0") == [demand]
        demand.accepted("vision-0", 0.0)
    assert demands.lost("vision-0") == []
    with pytest.raises(Unavailable, match=f"{MAX_ASKS} times"):
        demand.answer.result()
