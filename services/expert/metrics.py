"""Metrics of an expert replica."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Counter, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from services.runtime.plain_histogram import PlainHistogram

COMPUTE_SECONDS = PlainHistogram(
    "moonshard_expert_compute_seconds",
    "Applying the experts to one message; waiting for the message before it and the wire not included.",
    buckets=(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
REFUSED_FRAMES = Counter("moonshard_expert_refused_frames_total", "Frames that made no sense to this shard.")
STREAMS = Gauge("moonshard_expert_streams", "Open streams of attention shards by carrier.", ["carrier"])
WEIGHT_BYTES = Gauge("moonshard_expert_weight_bytes", "Packed weights of this shard in memory.")
LOAD_SECONDS = Gauge("moonshard_expert_load_seconds", "Reading and repacking this shard's weights at start.")


@dataclass
class Traffic:
    """Plain numbers: a Prometheus counter costs as much as decoding a frame. Only the computing thread changes them."""

    num_tokens: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class TrafficCollector(Collector):
    """The plain numbers of the hot path as Prometheus counters."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def collect(self) -> Iterator[CounterMetricFamily]:
        traffic = self._traffic
        yield CounterMetricFamily(
            "moonshard_expert_message_tokens", "Tokens in all messages together.", value=traffic.num_tokens
        )
        wire = CounterMetricFamily(
            "moonshard_expert_wire_bytes", "Frames on the hot wire, headers included.", labels=["direction"]
        )
        wire.add_metric(["in"], traffic.received_bytes)
        wire.add_metric(["out"], traffic.sent_bytes)
        yield wire
