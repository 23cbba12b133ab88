"""Figures for Prometheus: what the HTTP process times, and what the model process counts.

Knows prometheus_client and `protocol.py`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from baichuan.serve.protocol import Piece

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)

#: Fields of the engine's counts that go up and down, and those that only go up.
_GAUGES = {
    "running": ("baichuan_requests_running", "Requests in the batch."),
    "queued": ("baichuan_requests_queued", "Requests that wait for a place, or for room."),
    "held_tokens": ("baichuan_kv_tokens", "Positions in the caches of the running requests."),
    "kept_tokens": ("baichuan_kv_tokens_kept", "Positions kept for prompts that begin alike."),
    "limit_tokens": ("baichuan_kv_tokens_limit", "Most positions of both together."),
}
_COUNTERS = {
    "finished": ("baichuan_requests_finished", "Answers that came to their end."),
    "cancelled": ("baichuan_requests_cancelled", "Answers that nobody waited for any more."),
    "failed": ("baichuan_requests_failed", "Answers that ended with an error of the engine."),
    "prompt_tokens": ("baichuan_prompt_tokens", "Tokens of prompts."),
    "cached_tokens": ("baichuan_prompt_tokens_cached", "Those that were in the prefix cache."),
    "completion_tokens": ("baichuan_completion_tokens", "Tokens generated."),
    "passes": ("baichuan_forward_passes", "Passes through the network."),
}


class Metrics:
    """All figures of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._engine = _EngineCounts()
        self._registry.register(self._engine)
        self.responses = Counter(
            "baichuan_http_responses",
            "Responses.",
            ["route", "status"],
            registry=self._registry,
        )
        self._first_token = Histogram(
            "baichuan_time_to_first_token_seconds",
            "From the request to the first token of an answer, the queue included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._token = Histogram(
            "baichuan_time_per_token_seconds",
            "From one token of an answer to its next.",
            buckets=(0.001, 0.0025, 0.005, *_SECONDS[:9]),
            registry=self._registry,
        )

    async def timed(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
        """Pass pieces on and note when each comes."""
        began = time.perf_counter()
        latest: dict[int, float] = {}
        async for piece in pieces:
            now = time.perf_counter()
            if piece.index in latest:
                self._token.observe(now - latest[piece.index])
            else:
                self._first_token.observe(now - began)
            latest[piece.index] = now
            yield piece

    def text(self, counts: Mapping[str, int], ready: bool, starts: int) -> bytes:
        """Give everything in Prometheus's text format.

        Args:
            counts: the engine's, empty while there is none.
            ready: whether the model is loaded.
            starts: how often the model process was started.
        """
        self._engine.now = (counts, ready, starts)
        return generate_latest(self._registry)


class _EngineCounts(Collector):
    """The latest counts of the model process."""

    def __init__(self) -> None:
        self.now: tuple[Mapping[str, int], bool, int] = ({}, False, 0)

    def collect(self) -> Iterator[Metric]:
        counts, ready, starts = self.now
        yield GaugeMetricFamily("baichuan_model_ready", "1 if the model is loaded.", int(ready))
        yield CounterMetricFamily("baichuan_model_starts", "Starts of the model process.", starts)
        for field, (name, about) in _GAUGES.items():
            if field in counts:
                yield GaugeMetricFamily(name, about, counts[field])
        for field, (name, about) in _COUNTERS.items():
            if field in counts:
                yield CounterMetricFamily(name, about, counts[field])
