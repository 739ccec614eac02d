"""The server's metrics for Prometheus. Every server has its own registry."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily
except ImportError as error:
    raise ImportError("the server needs prometheus_client: pip install 'nemo_desta[serve]'") from error

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters that the server increments, and views of numbers that other objects hold.

    Args:
        receiving, waiting, running: numbers of requests that are being read, queued, and answered.
        counters: name -> (help, function), read at every scrape.
    """

    def __init__(
        self,
        *,
        receiving: Callable[[], float],
        waiting: Callable[[], float],
        running: Callable[[], float],
        counters: dict[str, tuple[str, Callable[[], float]]],
    ) -> None:
        self.registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, buckets=_SECONDS, registry=registry)
        text = "Requests for answers by HTTP status (499: client disconnected)"
        self.requests = counter("nemo_desta_requests", text, ["status"])
        self.first_token_secs = histogram("nemo_desta_time_to_first_token_seconds", "Arrival to first token")
        self.request_secs = histogram("nemo_desta_request_seconds", "Arrival to end of answer")
        self.prompt_tokens = counter("nemo_desta_prompt_tokens", "Prompt positions, audio vectors included")
        self.new_tokens = counter("nemo_desta_new_tokens", "Generated tokens, thinking included")
        self.audio_secs = counter("nemo_desta_audio_seconds", "Seconds of audio received")
        for name, text, count in (
            ("receiving", "Requests whose body is being read", receiving),
            ("waiting", "Requests being prepared or queued", waiting),
            ("running", "Conversations in the batch", running),
        ):
            Gauge(f"nemo_desta_requests_{name}", text, registry=registry).set_function(count)
        registry.register(_Views(counters))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Views:
    """Counters that other objects hold."""

    def __init__(self, counters: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self.counters = counters

    def collect(self) -> Iterable[Any]:
        for name, (text, count) in self.counters.items():
            yield CounterMetricFamily(f"nemo_desta_{name}", text, value=count())
