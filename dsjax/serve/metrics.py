"""Numbers that Prometheus reads: the engine's counts, and times as clients feel them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dsjax.serve.choice import Request
from dsjax.serve.protocol import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

GAUGES = {
    "running": "Requests that decode or prefill.",
    "waiting": "Requests in the queue.",
    "pages_free": "Pages of the cache that hold nothing.",
    "pages_owned": "Pages of the cache that requests hold.",
    "pages_cached": "Pages of the cache kept for prompts that begin alike.",
    "experts_busiest": "Tokens of the busiest device over the mean one, of those that share "
                       "experts; 0 where one has all.",
    "experts_busiest_in_order": "The same, had every expert one copy and were they in order.",
}
COUNTERS = {
    "prompt_tokens": "Tokens of prompts that were taken.",
    "cached_tokens": "Of those, tokens whose cache an earlier request had written.",
    "generated_tokens": "Tokens that were generated.",
    "passes": "Rows of all decoding steps whose tokens were used.",
    "drafted": "Tokens that the MTP modules drafted.",
    "accepted": "Drafted tokens that were accepted.",
    "steps": "Steps of the engine.",
    "host_s": "Seconds of steps in which the host worked and the device was not waited for.",
    "total_s": "Seconds of steps.",
}
NAMES = {"drafted": "draft_tokens", "accepted": "draft_tokens_accepted",
         "host_s": "host_seconds", "total_s": "step_seconds"}
"""Names of counts in Prometheus' style, where they differ."""


class Metrics:
    """The registry of one server; nothing is shared between servers of a process."""

    def __init__(self, engine: Engine) -> None:
        own = self._registry = CollectorRegistry()
        own.register(_OfEngine(engine))
        self.answers = Counter("dsjax_http_requests", "Requests by path and status.",
                               ["path", "status"], registry=own)
        self.left = Counter("dsjax_requests_left", "Requests whose client left before the end.",
                            registry=own)
        self._first = Histogram("dsjax_first_token_seconds", "From a request to its first token.",
                                buckets=LONG, registry=own)
        self._between = Histogram("dsjax_token_seconds", "Mean time between a request's tokens.",
                                  buckets=SHORT, registry=own)
        self._whole = Histogram("dsjax_request_seconds", "From a request to its last token.",
                                buckets=LONG, registry=own)

    def observe(self, request: Request) -> None:
        """Count a request that has ended, however it did."""
        if request.first is None:
            return
        self._first.observe(request.first - request.started)
        self._whole.observe(request.last - request.started)
        longest = max(choice.tokens for choice in request.choices)
        if longest > 1:
            self._between.observe((request.last - request.first) / (longest - 1))

    def text(self) -> bytes:
        """Return what Prometheus reads."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    """The engine's counts, taken when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        """No names in advance: the engine is not asked before it runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        for name, about in GAUGES.items():
            yield GaugeMetricFamily(f"dsjax_{name}", about, value=getattr(stats, name))
        for name, about in COUNTERS.items():
            named = NAMES.get(name, name)
            yield CounterMetricFamily(f"dsjax_{named}", about, value=getattr(stats, name))
