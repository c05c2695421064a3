"""Prometheus metrics of the gateway.

Token counters live in the scheduler; here is only what HTTP and the stream of deltas show.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 7.5, 10, 20, 40, 80, 160)
_ITL_S = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.8, 2, 5)
_E2E_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 5, 10, 20, 40, 80, 160, 320, 640)


class GatewayMetrics:
    """Created once per process on the actor's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http_requests = Counter(
            "rhizome_http_requests_total", "HTTP requests answered", ["route", "status"], registry=registry
        )
        self.client_disconnects = Counter(
            "rhizome_client_disconnects_total", "Clients that went away before their answer was complete",
            registry=registry,
        )  # fmt: skip
        self.time_to_first_token = Histogram(
            "rhizome_time_to_first_token_seconds", "From the arrival of a streaming request to its first token",
            buckets=_TTFT_S, registry=registry,
        )  # fmt: skip
        self.inter_token_latency = Histogram(
            "rhizome_inter_token_latency_seconds", "Between two tokens of one streaming request",
            buckets=_ITL_S, registry=registry,
        )  # fmt: skip
        self.e2e_request_latency = Histogram(
            "rhizome_e2e_request_latency_seconds", "From the arrival of a generation to its last token",
            buckets=_E2E_S, registry=registry,
        )  # fmt: skip
        self._in_flight = Gauge("rhizome_requests_in_flight", "Generations running for clients", registry=registry)

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Read the number of running generations at each scrape."""
        self._in_flight.set_function(count)
