"""The registry of service instances, with a clock of its own."""

from __future__ import annotations

import pytest

from shared import messages as m
from shared.actor import LIVENESS_TIMEOUT_S
from shared.messages.control import State
from shared.peers import Peers


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """A registry and what it reported as lost."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.lost: list[tuple[str, str]] = []
        self.peers = Peers(lambda beat, reason: self.lost.append((beat.id, reason)), self.clock)

    def beat(
        self, instance: str, *, name: str = "", service: str = "tokenizer", state: State = "ready", started_s: float = 1
    ) -> None:
        beat = m.Heartbeat(service, name or instance, instance, state, pid=1, host="h", started_s=started_s)
        self.peers.heard(beat)

    def bye(
        self, instance: str, *, name: str = "t", service: str = "tokenizer", at_s: float = 9, why: str = ""
    ) -> None:
        self.peers.left(m.Goodbye(service, name, instance, at_s, why))

    def ids(self, state: str | None = None) -> list[str]:
        return [b.id for b in self.peers.of("tokenizer", state)]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_instances_are_found_by_service_and_state(watched: Watched) -> None:
    watched.beat("t1")
    watched.beat("t2", state="draining")
    watched.beat("s1", service="scheduler")
    assert watched.ids() == ["t1", "t2"]
    assert watched.ids("ready") == ["t1"]
    assert [b.id for b in watched.peers.of("scheduler")] == ["s1"]


def test_a_later_beat_replaces_the_state(watched: Watched) -> None:
    watched.beat("t1", state="starting")
    watched.beat("t1", state="ready")
    assert watched.ids("ready") == ["t1"]
    assert watched.lost == []


def test_a_newer_instance_of_the_same_name_replaces_the_older(watched: Watched) -> None:
    watched.beat("t-a", name="t", started_s=1)
    watched.beat("t-b", name="t", started_s=2)
    assert watched.ids() == ["t-b"]
    assert watched.lost == [("t-a", "replaced by a new instance")]


def test_a_late_beat_of_a_replaced_instance_does_not_bring_it_back(watched: Watched) -> None:
    watched.beat("t-a", name="t", started_s=1)
    watched.beat("t-b", name="t", started_s=2)
    watched.beat("t-a", name="t", started_s=1)
    watched.beat("t-b", name="t", started_s=2)
    assert watched.ids() == ["t-b"]
    assert len(watched.lost) == 1


def test_the_same_name_in_another_service_is_somebody_else(watched: Watched) -> None:
    watched.beat("x-a", name="x", started_s=1)
    watched.beat("x-b", name="x", service="scheduler", started_s=2)
    assert watched.ids() == ["x-a"]


def test_a_goodbye_of_an_instance_loses_it_at_once(watched: Watched) -> None:
    watched.beat("t1")
    watched.beat("t2")
    watched.bye("t1", name="t1", why="drained")
    watched.bye("t1", name="t1")
    assert watched.ids() == ["t2"]
    assert watched.lost == [("t1", "drained")]


def test_a_goodbye_without_id_loses_what_is_older_under_that_name(watched: Watched) -> None:
    watched.beat("t-a", name="t", started_s=1)
    watched.bye("", name="t", at_s=0.5)
    watched.bye("", name="other", at_s=9)
    watched.bye("", name="t", service="gateway", at_s=9)
    assert watched.lost == []
    watched.bye("", name="t", at_s=2)
    assert watched.lost == [("t-a", "said goodbye")]


def test_a_silent_instance_is_lost_after_the_liveness_timeout(watched: Watched) -> None:
    watched.beat("quiet")
    watched.beat("alive")
    watched.clock.now_s += LIVENESS_TIMEOUT_S - 1
    watched.beat("alive")
    watched.peers.expire()
    assert watched.lost == []
    watched.clock.now_s += 2
    watched.peers.expire()
    assert watched.ids() == ["alive"]
    assert [instance for instance, _ in watched.lost] == ["quiet"]


def test_a_lost_instance_that_speaks_again_is_back(watched: Watched) -> None:
    watched.beat("t1")
    watched.clock.now_s += LIVENESS_TIMEOUT_S + 1
    watched.peers.expire()
    watched.beat("t1")
    assert watched.ids() == ["t1"]
