"""What the vision service counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.vision.batcher import Batch
from shared.errors import RhizomeError
from shared.messages.media import EncodedMedia

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class VisionMetrics:
    """Lives as long as the service; all of them in its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._media = Counter("rhizome_vision_media", "Images and videos encoded", ["kind"], registry=registry)
        self._tokens = Counter("rhizome_vision_tokens", "Tokens that they became", registry=registry)
        self.hits = Counter(
            "rhizome_vision_cache_hits", "Images and videos that were encoded, or in work, already", registry=registry
        )
        self.prepare_s = Histogram(
            "rhizome_vision_prepare_seconds", "Decoding and resizing one image or video", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._encode_s = Histogram(
            "rhizome_vision_encode_seconds", "One batch in the encoder", buckets=_SECONDS, registry=registry
        )
        self._batch_items = Histogram(
            "rhizome_vision_batch_items", "Images and videos in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )  # fmt: skip
        self._patches = Counter("rhizome_vision_patches", "Patches encoded", registry=registry)
        self._fetch_s = Histogram(
            "rhizome_vision_fetch_seconds", "Fetching one image or video", ["scheme"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._fetched = Counter(
            "rhizome_vision_fetched_bytes", "Bytes of images and videos", ["scheme"], registry=registry
        )
        self._fetch_errors = Counter(
            "rhizome_vision_fetch_errors", "Fetches that failed", ["scheme", "code"], registry=registry
        )

    def watch(self, name: str, doc: str, value: Callable[[], float]) -> None:
        """A gauge that asks for its value."""
        Gauge(name, doc, registry=self._registry).set_function(value)

    def encoded(self, media: EncodedMedia) -> None:
        self._media.labels(media.kind).inc()
        self._tokens.inc(media.ref.tokens)

    def batch(self, batch: Batch) -> None:
        self._encode_s.observe(batch.encode_s)
        self._batch_items.observe(batch.items)
        self._patches.inc(batch.patches)

    @contextmanager
    def fetching(self, scheme: str) -> Iterator[Callable[[int], None]]:
        """Time one fetch; call what it gives with the number of bytes."""
        try:
            with self._fetch_s.labels(scheme).time():
                yield self._fetched.labels(scheme).inc
        except RhizomeError as fault:
            self._fetch_errors.labels(scheme, fault.code).inc()
            raise
