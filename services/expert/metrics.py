"""What an expert replica counts."""

from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from services.model.expert_shard import ExpertShard

COMPUTE_SECONDS = Histogram(
    "moonshard_expert_compute_seconds",
    "Applying the experts to one message; waiting for the message before it and the wire not included.",
    buckets=(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
MESSAGE_TOKENS = Histogram(
    "moonshard_expert_message_tokens",
    "Tokens in one message.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
)
WIRE_BYTES = Counter("moonshard_expert_wire_bytes_total", "Frames on the hot wire, headers included.", ["direction"])
REFUSED_FRAMES = Counter("moonshard_expert_refused_frames_total", "Frames that made no sense to this shard.")
STREAMS = Gauge("moonshard_expert_streams", "Open streams of attention shards by carrier.", ["carrier"])
WEIGHT_BYTES = Gauge("moonshard_expert_weight_bytes", "Packed weights of this shard in memory.")
LOAD_SECONDS = Gauge("moonshard_expert_load_seconds", "Reading and repacking this shard's weights at start.")


class TokenCounts(Collector):
    """Load by expert and by layer, not by both: a shard of K2.6 has thousands of pairs and only tens of each."""

    def __init__(self, shard: ExpertShard) -> None:
        self._shard = shard

    def collect(self) -> Iterator[CounterMetricFamily]:
        by_expert = CounterMetricFamily(
            "moonshard_expert_tokens", "Tokens that an expert was applied to, summed over layers.", labels=["expert"]
        )
        for expert, count in zip(self._shard.expert_ids, self._shard.token_counts.sum(axis=0).tolist(), strict=True):
            by_expert.add_metric([str(expert)], count)
        yield by_expert
        by_layer = CounterMetricFamily(
            "moonshard_expert_layer_tokens", "Pairs of token and expert in a layer, on this shard.", labels=["layer"]
        )
        for layer, count in zip(self._shard.layer_ids, self._shard.token_counts.sum(axis=1).tolist(), strict=True):
            by_layer.add_metric([str(layer)], count)
        yield by_layer
