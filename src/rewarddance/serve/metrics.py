"""What a server counts, in Prometheus' text form."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServerMetrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        put: Any = {"registry": self.registry}
        self.requests = Counter("rewarddance_requests", "Requests by path and status.", ["path", "status"], **put)
        self.questions = Counter(
            "rewarddance_questions", "Questions that were answered, failed or dropped.", ["outcome"], **put
        )
        self.batch = Histogram("rewarddance_batch_questions", "Questions of a batch.", buckets=_SIZES, **put)
        self.judging = Histogram("rewarddance_judge_seconds", "Seconds of a batch.", buckets=_SECONDS, **put)
        self.request = Histogram("rewarddance_request_seconds", "Seconds of a request.", buckets=_SECONDS, **put)
        self.waiting = Gauge("rewarddance_waiting_questions", "Questions that wait.", **put)
        self.held = Gauge("rewarddance_held_bytes", "Bytes of the requests in flight.", **put)
        self.pictures = Gauge("rewarddance_picture_cache_bytes", "Bytes of pixels that are kept.", **put)
        self.known = Gauge("rewarddance_pictures_known", "Pictures of requests that were known already.", **put)
        self.unknown = Gauge("rewarddance_pictures_decoded", "Pictures of requests that were decoded.", **put)
        self.prefixes = Gauge("rewarddance_prefix_cache_bytes", "Bytes of keys and values that are kept.", **put)
        self.prefixes_known = Gauge("rewarddance_prefixes_known", "Prefixes of batches that were read before.", **put)
        self.prefixes_read = Gauge("rewarddance_prefixes_read", "Prefixes of batches that were not.", **put)

    def text(self) -> bytes:
        return generate_latest(self.registry)
