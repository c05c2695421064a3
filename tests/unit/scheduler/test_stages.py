from __future__ import annotations

import pytest

from services.scheduler.config import SchedulerConfig
from services.scheduler.stages import NAMES, Stages
from tests.fakes.scheduler_driver import Driver


def test_time_is_added_by_stage_and_averaged_over_the_steps() -> None:
    stages = Stages()
    for _ in range(4):
        stages.step_sent()
    stages.seconds["apply"] += 0.002
    stages.seconds["apply"] += 0.006
    assert stages.mean_ms() == {**dict.fromkeys(NAMES, 0.0), "apply": pytest.approx(2.0)}


def test_no_steps_are_no_division_by_zero() -> None:
    assert Stages().mean_ms() == dict.fromkeys(NAMES, 0.0)


def test_a_block_is_measured_even_when_it_fails() -> None:
    stages = Stages()
    with pytest.raises(KeyError), stages.measure("plan"):
        raise KeyError
    assert stages.seconds["plan"] > 0


def test_waiting_counts_no_moment_twice_however_many_plans_are_under_way() -> None:
    driver = Driver(config=SchedulerConfig(pipeline_depth=3))
    driver.submit([3], 9, ignore_eos=True)
    for _ in range(3):
        driver.pump()
    for _ in range(5):
        driver.now += 1.0  # the engine takes a second per step
        driver.answer()
        driver.pump()
    assert driver.scheduler.stages.seconds["wait"] == pytest.approx(5.0)


def test_every_stage_of_a_working_scheduler_takes_time() -> None:
    driver = Driver()
    driver.submit([3], 5, ignore_eos=True)
    driver.run()
    seconds = driver.scheduler.stages.seconds
    assert all(seconds[name] > 0 for name in ("order", "admit", "plan", "apply"))
    assert driver.scheduler.stages.steps == len(driver.history)
