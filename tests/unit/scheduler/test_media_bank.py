"""Embeddings at the ranks: asked for, pinned, dropped for others, lost."""

from __future__ import annotations

import pytest

from services.scheduler.media_bank import ASK_AGAIN_S, MediaBank
from shared import messages as m
from shared.errors import InvalidRequest, MediaLost
from tests.fakes.clock import Clock

WIDTH = 4
ROW_BYTES = WIDTH * 4


def ref(image: int, tokens: int = 1, dtype: str = "float32") -> m.EmbeddingRef:
    return m.EmbeddingRef(f"{image:032x}", "vision-0", f"/shm/{image}", tokens, WIDTH, dtype)


class Ranks:
    """The bank and what its ranks answer."""

    def __init__(self, rows: int = 10, tp_size: int = 1) -> None:
        self.clock = Clock()
        self.bank = MediaBank("e", "s", tp_size, rows * ROW_BYTES, self.clock)

    def ready(self, *refs: m.EmbeddingRef) -> bool:
        """Whether a request that comes alone could start."""
        self.bank.begin_round()
        return self.bank.ready(refs)

    def asked(self) -> list[int]:
        """Slots that ranks are asked for now."""
        ask = self.bank.take()
        return [] if ask is None else ask.slots

    def stage(self, slots: list[int], rank: int = 0, missing: list[int] | None = None) -> None:
        self.bank.staged(m.MediaStaged("e", "s", rank, slots, missing or []))

    def hold(self, *refs: m.EmbeddingRef) -> None:
        """Have these at all ranks."""
        assert not self.ready(*refs)
        self.stage(self.asked())
        assert self.ready(*refs)


def test_an_image_is_asked_for_once_and_ready_when_it_is_there() -> None:
    ranks = Ranks()
    assert not ranks.ready(ref(1), ref(2, 3))
    ask = ranks.bank.take()
    assert ask == m.StageMedia("e", "s", [0, 1], [ref(1), ref(2, 3)])
    assert not ranks.ready(ref(1), ref(2, 3))
    assert ranks.asked() == []
    ranks.stage([0])
    assert ranks.ready(ref(1))
    assert not ranks.ready(ref(1), ref(2, 3))
    ranks.stage([1])
    assert ranks.ready(ref(1), ref(2, 3))


def test_nothing_is_wanted_of_a_prompt_without_images() -> None:
    ranks = Ranks()
    assert ranks.ready()
    assert ranks.asked() == []


def test_all_ranks_must_have_it() -> None:
    ranks = Ranks(tp_size=3)
    assert not ranks.ready(ref(1))
    (slot,) = ranks.asked()
    for rank in (2, 0, 0):
        ranks.stage([slot], rank)
        assert not ranks.ready(ref(1))
    ranks.stage([slot], 1)
    assert ranks.ready(ref(1))


def test_a_silent_rank_is_asked_again_after_a_while_and_not_before() -> None:
    ranks = Ranks(tp_size=2)
    assert not ranks.ready(ref(1))
    (slot,) = ranks.asked()
    ranks.stage([slot], 0)
    ranks.clock.now_s += ASK_AGAIN_S
    assert not ranks.ready(ref(1))
    assert ranks.asked() == []
    ranks.clock.now_s += 0.1
    assert not ranks.ready(ref(1))
    assert ranks.asked() == [slot]
    assert not ranks.ready(ref(1))
    assert ranks.asked() == []
    ranks.stage([slot], 1)
    assert ranks.ready(ref(1))


def test_the_least_recently_wanted_goes_first_and_is_dropped() -> None:
    ranks = Ranks(rows=3)
    for image in (1, 2, 3):
        ranks.hold(ref(image))
    assert ranks.ready(ref(1))
    ranks.hold(ref(4))
    assert ranks.bank.take_drops() == [1]  # the slot of image 2
    assert ranks.bank.take_drops() == []
    assert ranks.ready(ref(1), ref(3), ref(4))


def test_a_dropped_image_that_comes_back_gets_a_slot_that_nobody_had() -> None:
    ranks = Ranks(rows=1)
    for image in (1, 2, 1):
        ranks.hold(ref(image))
    assert ranks.bank.take_drops() == [0, 1]
    assert ranks.bank.slots() == {2}


def test_ranks_are_crowded_until_they_are_told_what_to_drop() -> None:
    ranks = Ranks(rows=2)
    ranks.hold(ref(1, 2))
    assert not ranks.bank.crowded
    assert not ranks.ready(ref(2))
    assert ranks.bank.crowded
    assert ranks.bank.take_drops() == [0]
    assert not ranks.bank.crowded


def test_pinned_images_stay_and_later_ones_wait() -> None:
    ranks = Ranks(rows=3)
    ranks.hold(ref(1, 2))
    ranks.bank.pin([ref(1).key])
    ranks.bank.pin([ref(1).key])
    for _ in range(2):
        assert ranks.bank.pinned == 1
        assert not ranks.ready(ref(2, 2))
        assert ranks.asked() == []
        ranks.bank.unpin([ref(1).key])
    assert ranks.bank.pinned == 0
    ranks.hold(ref(2, 2))
    assert ranks.bank.take_drops() == [0]


def test_what_an_earlier_request_of_a_round_wants_a_later_one_does_not_push_out() -> None:
    """Else two requests that do not fit together would take turns for ever, and none would start."""
    ranks = Ranks(rows=3)
    ranks.hold(ref(1, 2))
    ranks.bank.begin_round()
    assert ranks.bank.ready([ref(1, 2)])
    assert not ranks.bank.ready([ref(2, 2)])
    assert ranks.bank.ready([ref(1, 2)])
    assert ranks.asked() == []
    assert ranks.bank.take_drops() == []


def test_a_later_request_does_not_push_out_what_an_earlier_one_is_waiting_for() -> None:
    ranks = Ranks(rows=3)
    ranks.bank.begin_round()
    assert not ranks.bank.ready([ref(1, 2)])
    assert not ranks.bank.ready([ref(2, 2)])
    (slot,) = ranks.asked()
    ranks.stage([slot])
    assert ranks.ready(ref(1, 2))


def test_an_image_that_was_pushed_out_before_it_was_asked_for_is_not_asked_for() -> None:
    ranks = Ranks(rows=1)
    assert not ranks.ready(ref(1))
    assert not ranks.ready(ref(2))
    ask = ranks.bank.take()
    assert ask is not None
    assert ask.refs == [ref(2)]


def test_one_request_over_the_budget_is_refused_with_the_numbers() -> None:
    ranks = Ranks(rows=10)
    with pytest.raises(InvalidRequest, match=r"176 bytes.*160.*--media-staging-bytes"):
        ranks.ready(ref(1, 5), ref(2, 6))
    assert ranks.asked() == []
    ranks.hold(ref(1, 5), ref(2, 5), ref(1, 5))  # the same image twice counts once


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_as_many_bytes_take_half_the_room(dtype: str) -> None:
    ranks = Ranks(rows=2)
    ranks.hold(ref(1, 4, dtype))


def test_a_lost_image_fails_the_request_that_wants_it_once() -> None:
    ranks = Ranks(rows=2)
    assert not ranks.ready(ref(1), ref(2))
    first, second = ranks.asked()
    ranks.stage([second], missing=[first])
    with pytest.raises(MediaLost):
        ranks.ready(ref(1), ref(2))
    assert ranks.bank.take_drops() == [first]
    assert not ranks.ready(ref(1), ref(2))  # encoded again, it is asked for again
    assert ranks.asked() == [2]
    ranks.stage([2])
    assert ranks.ready(ref(1), ref(2))


def test_one_rank_that_cannot_have_it_is_enough_to_lose_it() -> None:
    ranks = Ranks(tp_size=2)
    assert not ranks.ready(ref(1))
    (slot,) = ranks.asked()
    ranks.stage([slot], 0)
    ranks.stage([], 1, missing=[slot])
    with pytest.raises(MediaLost):
        ranks.ready(ref(1))


def test_answers_of_slots_that_are_gone_and_late_losses_change_nothing() -> None:
    ranks = Ranks(rows=1)
    ranks.hold(ref(1))
    ranks.bank.pin([ref(1).key])
    ranks.stage([99], missing=[98])
    ranks.stage([], missing=[0])  # in use: all ranks said that they have it
    assert ranks.ready(ref(1))
    ranks.bank.unpin([ref(1).key])
    ranks.hold(ref(2))
    ranks.stage([], missing=[0])
    assert ranks.ready(ref(2))
