from __future__ import annotations

from rhizome.supervisor.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy()


def test_delays_double_up_to_the_limit() -> None:
    restarts = Restarts(POLICY)
    delays = [restarts.delay_after(1, ready_for_s=1.0) for _ in range(7)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_long_healthy_life_starts_over() -> None:
    restarts = Restarts(POLICY)
    for _ in range(4):
        restarts.delay_after(-9, ready_for_s=1.0)
    assert restarts.delay_after(-9, ready_for_s=POLICY.healthy_s) == 0.5


def test_five_ends_without_ever_being_ready_give_up() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.delay_after(1, None) for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, None]


def test_one_that_was_ready_before_is_never_given_up() -> None:
    restarts = Restarts(POLICY)
    restarts.delay_after(1, ready_for_s=0.1)
    assert None not in [restarts.delay_after(1, None) for _ in range(200)]


def test_a_usage_error_at_the_first_start_gives_up_at_once() -> None:
    assert Restarts(POLICY).delay_after(2, None) is None
