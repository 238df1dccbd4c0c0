"""Metrics of the dispatch to expert shards."""

from prometheus_client import Counter, Gauge

from services.runtime.plain_histogram import PlainHistogram

BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

DISPATCH_SECONDS = PlainHistogram(
    "moonshard_dispatch_seconds",
    "From handing one layer's tokens to the experts until the last partial sum is there, computation included.",
    buckets=BUCKETS,
)

ROUND_TRIP_SECONDS = PlainHistogram(
    "moonshard_dispatch_round_trip_seconds",
    "From dispatch to a shard's answer, by expert shard; its computation and repeats included.",
    "shard",
    buckets=BUCKETS,
)

WAIT_SECONDS = PlainHistogram(
    "moonshard_dispatch_wait_seconds",
    "Time from when attention had nothing else to do for a micro-batch until the layer's last partial sum arrived.",
    buckets=BUCKETS,
)

REPEATED_CALLS = Counter(
    "moonshard_dispatch_repeated_calls_total",
    "Frames sent again, because the replica's stream broke (lost) or its answer took too long (late).",
    ["reason"],
)

DROPPED_ANSWERS = Counter(
    "moonshard_dispatch_dropped_answers_total",
    "Answers to no call: duplicates after a repeat, or later than the deadline.",
)

LIVE_REPLICAS = Gauge(
    "moonshard_dispatch_live_replicas",
    "Expert replicas with an open stream, by expert shard.",
    ["shard"],
)

STREAMS = Gauge(
    "moonshard_dispatch_streams",
    "Open streams to expert replicas, by transport: shared, unix, tcp, sealed (tcp) or grpc.",
    ["transport"],
)
