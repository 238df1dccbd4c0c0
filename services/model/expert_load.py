"""Prometheus counters of the tokens of each expert."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from services.model.expert_shard import ExpertShard


class ExpertLoadCollector(Collector):
    """The load of one shard's experts, by expert and by layer.

    Not by both together: the 384 experts of K2.6 in 60 layers would make 23040 series instead of 444.
    """

    def __init__(self, shard: ExpertShard) -> None:
        self._shard = shard

    def collect(self) -> Iterator[CounterMetricFamily]:
        counts = self._shard.token_counts
        yield _counter(
            "moonshard_expert_tokens",
            "Tokens that an expert was applied to, summed over layers.",
            "expert",
            dict(zip(self._shard.expert_ids, counts.sum(axis=0).tolist(), strict=True)),
        )
        yield _counter(
            "moonshard_expert_layer_tokens",
            "Pairs of token and expert in a layer, on this shard.",
            "layer",
            dict(zip(self._shard.layer_ids, counts.sum(axis=1).tolist(), strict=True)),
        )


def _counter(name: str, text: str, label: str, values: Mapping[int, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family
