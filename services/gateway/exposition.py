"""GET /metrics: the Prometheus text of every instance as one, each sample labelled with where it comes from."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from services.gateway.core import Core
from shared.messages import MetricsText


class Exposition:
    """Handler of the route."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def get(self, _: web.Request) -> web.Response:
        body = merge(await self._core.backend.scrape())
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def merge(scrapes: Iterable[MetricsText]) -> bytes:
    """Families of the same name become one, so that HELP and TYPE appear once, as the format demands."""
    families: dict[str, Metric] = {}
    for scrape in sorted(scrapes, key=lambda s: (s.service, s.id)):
        origin = {"service": scrape.service, "instance": scrape.id}
        for found in text_string_to_metric_families(scrape.text):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            family.samples += [
                Sample(s.name, {**origin, **s.labels}, s.value, s.timestamp, s.exemplar) for s in found.samples
            ]
    return generate_latest(_Families(families.values()))


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
