from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from services.scheduler.metrics import SchedulerMetrics
from tests.fakes.engine import engine_info
from tests.fakes.scheduler_driver import Driver


def scrape(driver: Driver) -> dict[str, float]:
    """Name with labels -> value, as Prometheus would read it."""
    registry = CollectorRegistry()
    SchedulerMetrics(driver.scheduler, registry)
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}


def test_names_end_in_what_dashboards_look_for() -> None:
    names = {name.split("{")[0] for name in scrape(Driver())}
    assert {
        "rhizome_num_running_reqs", "rhizome_num_queue_reqs", "rhizome_token_usage", "rhizome_cache_hit_rate",
        "rhizome_prompt_tokens_total", "rhizome_generation_tokens_total", "rhizome_cached_tokens_total",
        "rhizome_requests_total", "rhizome_retractions_total", "rhizome_requests_aborted_total",
        "rhizome_step_seconds_total", "rhizome_steps_total", "rhizome_kv_pages",
    } <= names  # fmt: skip


def test_values_follow_the_scheduler() -> None:
    driver = Driver(engine_info(num_pages=200, max_rows=1))
    driver.submit([3] * 40, 1)
    driver.run()
    driver.submit([3] * 50, 20, ignore_eos=True)
    driver.submit([4], 5)
    driver.step()
    values = scrape(driver)
    assert values["rhizome_num_running_reqs"] == 1
    assert values["rhizome_num_queue_reqs"] == 1
    assert values["rhizome_prompt_tokens_total"] == 90
    assert values["rhizome_cached_tokens_total"] == 40
    assert values["rhizome_cache_hit_rate"] == 40 / 90
    assert values["rhizome_generation_tokens_total"] == 2
    assert values['rhizome_token_usage{engine="engine-0"}'] == 51 / 200  # one more for the step that was sent ahead
    places = [values[f'rhizome_kv_pages{{engine="engine-0",place="{p}"}}'] for p in ("free", "protected", "private")]
    assert places == [149, 50, 1]


def test_every_page_is_in_one_place() -> None:
    driver = Driver(engine_info(num_pages=100))
    driver.submit([3] * 20, 10, ignore_eos=True)
    driver.submit([4] * 20, 1)
    for _ in range(4):
        driver.step()
        pages = [v for name, v in scrape(driver).items() if name.startswith("rhizome_kv_pages")]
        assert sum(pages) == 100
