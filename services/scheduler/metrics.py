"""Prometheus metrics of the scheduler, read from its state at scrape time: the step loop pays nothing for them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.scheduler.engine import Engine
from services.scheduler.scheduler import Scheduler


class SchedulerMetrics:
    """A Prometheus collector."""

    def __init__(self, scheduler: Scheduler, registry: CollectorRegistry) -> None:
        self._scheduler = scheduler
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        s, t = self._scheduler, self._scheduler.totals
        yield GaugeMetricFamily("rhizome_num_running_reqs", "Requests that hold a row", s.running_reqs)
        yield GaugeMetricFamily("rhizome_num_queue_reqs", "Requests that wait", s.queue_reqs)
        hit_rate = t.cached_tokens / t.prompt_tokens if t.prompt_tokens else 0.0
        yield GaugeMetricFamily("rhizome_cache_hit_rate", "Share of prompt tokens found in the radix cache", hit_rate)
        yield CounterMetricFamily("rhizome_requests", "Requests accepted", t.requests)
        yield CounterMetricFamily("rhizome_prompt_tokens", "Prompt tokens of started requests", t.prompt_tokens)
        yield CounterMetricFamily("rhizome_cached_tokens", "Prompt tokens found in the radix cache", t.cached_tokens)
        yield CounterMetricFamily("rhizome_generation_tokens", "Tokens generated", t.generation_tokens)
        yield CounterMetricFamily("rhizome_forced_tokens", "Tokens that grammars forced, not sampled", t.forced_tokens)
        yield CounterMetricFamily("rhizome_retractions", "Requests sent back to the queue", t.retractions)
        yield CounterMetricFamily("rhizome_requests_aborted", "Requests ended before their end", t.aborted)
        yield from self._engines()
        stages = CounterMetricFamily("rhizome_step_seconds", "Scheduler time by stage of a step", labels=["stage"])
        for name, seconds in s.stages.seconds.items():
            stages.add_metric([name], seconds)
        yield stages
        yield CounterMetricFamily("rhizome_steps", "Steps sent", s.stages.steps)

    def _engines(self) -> Iterator[Metric]:
        usage = GaugeMetricFamily("rhizome_token_usage", "Share of the KV pool held by requests", labels=["engine"])
        pages = GaugeMetricFamily("rhizome_kv_pages", "Pages of the KV pool by place", labels=["engine", "place"])
        for engine in self._scheduler.engines.values():
            name, places = engine.info.name, _places(engine)
            held = places["protected"] + places["private"]
            usage.add_metric([name], held / max(engine.info.num_pages, 1))
            for place, count in places.items():
                pages.add_metric([name, place], count)
        yield usage
        yield pages


def _places(engine: Engine) -> dict[str, int]:
    pool = engine.pool
    return {
        "free": pool.allocator.free_pages,
        "evictable": pool.cache.evictable_pages,
        "protected": pool.cache.protected_pages,
        "private": pool.private_pages,
    }
