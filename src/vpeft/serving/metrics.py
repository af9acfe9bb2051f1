"""What a server counts, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

# Powers of two, as batches are small.
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one process; with several processes they are added up from files in PROMETHEUS_MULTIPROC_DIR."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("vpeft_requests", "Requests by path and status.", ("path", "status"), registry=registry)
        self.seconds = Histogram("vpeft_request_seconds", "Time of a request.", ("path",), registry=registry)
        self.images = Counter("vpeft_images", "Images that were computed, by adapter.", ("adapter",), registry=registry)
        self.batches = Histogram("vpeft_batch_images", "Images in a batch.", buckets=BATCHES, registry=registry)
        self.waited = Histogram("vpeft_queue_seconds", "Time of an image in the queue.", registry=registry)
        self.computed = Histogram("vpeft_batch_seconds", "Time of a batch on the model.", registry=registry)
        self.loads = Counter("vpeft_adapter_loads", "Adapters put on the backbone.", registry=registry)
        self.evictions = Counter("vpeft_adapter_evictions", "Adapters that made room for others.", registry=registry)
        self.loaded = self._gauge("vpeft_adapters_loaded", "Adapters on the backbone.")
        self.queue = self._gauge("vpeft_queue_images", "Images that wait.")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

    def text(self) -> bytes:
        """All numbers in Prometheus's format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        joint = CollectorRegistry()
        multiprocess.MultiProcessCollector(joint)  # type: ignore[no-untyped-call]
        return generate_latest(joint)
