"""Metrics of an expert replica."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from prometheus_client import Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

BUCKETS: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
STREAMS = Gauge("moonshard_expert_streams", "Open streams of attention shards by transport.", ["transport"])
WEIGHT_BYTES = Gauge("moonshard_expert_weight_bytes", "Packed weights of this shard in memory.")
LOAD_SECONDS = Gauge("moonshard_expert_load_seconds", "Reading and repacking this shard's weights at start.")


@dataclass
class Traffic:
    """Plain numbers: a Prometheus counter costs as much as decoding a frame. Only the computing thread changes them.

    frames  computed frames by bucket of their time, not summed up
    """

    num_tokens: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    refused: int = 0
    compute_s: float = 0.0
    frames: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def add_computation(self, seconds: float, num_tokens: int) -> None:
        """Count one frame that was computed."""
        self.num_tokens += num_tokens
        self.compute_s += seconds
        self.frames[bisect_left(BUCKETS, seconds)] += 1


class TrafficCollector(Collector):
    """The plain numbers of the hot path as Prometheus metrics.

    read  returns their current values
    """

    def __init__(self, read: Callable[[], Traffic]) -> None:
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        traffic = self._read()
        yield CounterMetricFamily(
            "moonshard_expert_message_tokens", "Tokens in all messages together.", value=traffic.num_tokens
        )
        wire = CounterMetricFamily(
            "moonshard_expert_wire_bytes", "Frames on the hot wire, headers included.", labels=["direction"]
        )
        wire.add_metric(["in"], traffic.received_bytes)
        wire.add_metric(["out"], traffic.sent_bytes)
        yield wire
        yield CounterMetricFamily(
            "moonshard_expert_refused_frames", "Frames that made no sense to this shard.", value=traffic.refused
        )
        bounds = [*map(str, map(float, BUCKETS)), "+Inf"]
        yield HistogramMetricFamily(
            "moonshard_expert_compute_seconds",
            "Applying the experts to one message; waiting for the message before it and the wire not included.",
            buckets=list(zip(bounds, accumulate(traffic.frames), strict=True)),
            sum_value=traffic.compute_s,
        )
