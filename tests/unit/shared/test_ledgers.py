"""Who gets a ledger, and when."""

from __future__ import annotations

from shared.actor import LIVENESS_TIMEOUT_S
from shared.ledgers import LEDGER_S, ROUNDS_AFTER_LAST, LedgerRounds
from tests.fakes.clock import Clock


def rounds() -> tuple[LedgerRounds, Clock]:
    clock = Clock()
    return LedgerRounds(clock), clock


def test_nobody_hears_anything_while_nothing_ever_ran() -> None:
    ledgers, clock = rounds()
    clock.now_s += 1000
    assert ledgers.due() == []
    assert ledgers.number == 0


def test_rounds_are_numbered_and_keep_their_distance() -> None:
    ledgers, clock = rounds()
    seen = []
    for _ in range(10):
        ledgers.owe("a")
        clock.now_s += 1.0
        seen.append((ledgers.due(), ledgers.number))
    none: list[str] = []
    assert seen == [(none, 0), (none, 0), (["a"], 1), (none, 1), (none, 1), (["a"], 2), (none, 2), (none, 2),
                    (["a"], 3), (none, 3)]  # fmt: skip


def test_a_receiver_hears_of_the_end_of_its_last_stream_and_then_no_more() -> None:
    ledgers, clock = rounds()
    ledgers.owe("ended")
    heard = []
    for _ in range(2 * ROUNDS_AFTER_LAST):
        ledgers.owe("busy")
        clock.now_s += LEDGER_S
        heard.append("ended" in ledgers.due())
    assert heard == [True] * ROUNDS_AFTER_LAST + [False] * ROUNDS_AFTER_LAST


def test_who_misses_every_round_after_the_last_has_taken_the_sender_for_dead() -> None:
    assert (ROUNDS_AFTER_LAST - 1) * LEDGER_S > LIVENESS_TIMEOUT_S


def test_a_receiver_that_is_busy_again_is_told_as_long_as_before() -> None:
    ledgers, clock = rounds()
    ledgers.owe("a")
    for _ in range(ROUNDS_AFTER_LAST - 1):
        clock.now_s += LEDGER_S
        assert ledgers.due()
    ledgers.owe("a")
    for _ in range(ROUNDS_AFTER_LAST):
        clock.now_s += LEDGER_S
        assert ledgers.due()
    clock.now_s += LEDGER_S
    assert not ledgers.due()
