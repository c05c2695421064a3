"""What a worker says of the plans that it got and is done with."""

from __future__ import annotations

from services.worker.progress import Progress
from shared import messages as m


def plan(session: str, seq: int) -> m.StepPlan:
    return m.StepPlan("engine-0", session, seq)


def after(*events: tuple[str, str, int]) -> tuple[str, int, int]:
    """Session, last plan received and last plan done after ("got" or "done", session, seq) events."""
    progress = Progress()
    for what, session, seq in events:
        (progress.received if what == "got" else progress.done)(plan(session, seq))
    return progress.session, progress.received_seq, progress.last_seq


def test_a_worker_without_plans_says_so() -> None:
    assert after() == ("", -1, -1)


def test_plans_count_as_received_before_they_are_done() -> None:
    assert after(("got", "a", 0), ("got", "a", 1), ("got", "a", 2), ("done", "a", 0)) == ("a", 2, 0)


def test_behind_a_gap_nothing_counts_as_received() -> None:
    assert after(("got", "a", 0), ("got", "a", 2), ("got", "a", 3), ("done", "a", 0)) == ("a", 0, 0)


def test_a_session_begins_with_its_plan_0() -> None:
    before = (("got", "a", 0), ("got", "a", 1))
    assert after(*before, ("got", "b", 1)) == ("a", 1, -1)
    assert after(*before, ("got", "b", 0), ("got", "b", 1)) == ("b", 1, -1)


def test_what_is_done_of_an_older_session_says_nothing_of_the_new_one() -> None:
    assert after(("got", "a", 0), ("got", "a", 1), ("got", "b", 0), ("done", "a", 0), ("done", "a", 1)) == ("b", 0, -1)
