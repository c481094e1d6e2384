"""Counts and times of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server. They hold no texts of queries; `waiting` gives the queue of each system."""

    def __init__(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        self._registry, self._waiting = CollectorRegistry(), waiting
        self._requests = Counter(
            "retrodistill_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "retrodistill_request_seconds",
            "Time from the request to the last byte of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_seconds = Histogram(
            "retrodistill_batch_seconds",
            "Time of a batch in the thread of its system, once for each of its requests.",
            ["system"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_size = Histogram(
            "retrodistill_batch_size",
            "Requests that were computed together.",
            ["system"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self._events = Counter(
            "retrodistill_events",
            "Judgments, reloads, full queues, time limits and disconnected clients.",
            ["event"],
            registry=self._registry,
        )
        self._registry.register(self)

    def collect(self) -> list[GaugeMetricFamily]:
        """The queues, as Prometheus asks for them."""
        gauge = GaugeMetricFamily("retrodistill_waiting", "Requests that wait for a system.", labels=["system"])
        for system, count in self._waiting().items():
            gauge.add_metric([system], count)
        return [gauge]

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: systems are not known yet when it registers."""
        return []

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def batch(self, system: str, size: int, seconds: float) -> None:
        """Count a request that was computed in a batch."""
        self._batch_size.labels(system).observe(size)
        self._batch_seconds.labels(system).observe(seconds)

    def event(self, event: str) -> None:
        """Count an event."""
        self._events.labels(event).inc()

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)
