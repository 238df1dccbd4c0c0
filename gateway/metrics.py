"""The gateway's metrics."""

from prometheus_client import Counter, Gauge, Histogram

from services.runtime.plain_histogram import PlainHistogram

REQUESTS = Counter(
    "moonshard_gateway_requests_total",
    "HTTP requests that were answered, by dialect and status; 499 means that the client left.",
    ["dialect", "status"],
)
OPEN_REQUESTS = Gauge("moonshard_gateway_open_requests", "Admitted requests whose answer is not complete.")
PREDICTED_WAIT_SECONDS = Gauge(
    "moonshard_gateway_predicted_wait_seconds", "Wait for a first token, predicted for the last request that came."
)
OPEN_STREAMS = Gauge("moonshard_gateway_open_streams", "Event streams that are being written.")
BODY_BYTES = Gauge("moonshard_gateway_body_bytes", "Bytes that the bodies of open requests hold.")
CONNECTIONS = Gauge("moonshard_gateway_connections", "Open HTTP connections.")
HELD_REQUESTS = Gauge("moonshard_gateway_held_requests", "Calls that wait for a replica to be ready.", ["role"])
SERVING_REPLICAS = Gauge("moonshard_gateway_serving_replicas", "Replicas that say they are ready.", ["role"])
HAND_OVERS = Counter(
    "moonshard_gateway_hand_overs_total", "Calls that were repeated because a replica was lost.", ["role"]
)
UNCOUNTED_REQUESTS = Counter(
    "moonshard_gateway_uncounted_requests_total",
    "Requests that were admitted without a look at their key's limits, because the store of limits did not answer.",
)
TOKENS = Counter(
    "moonshard_gateway_tokens_total",
    "Tokens of finished and of broken requests: prompt, cached (of the prompt), completion, reasoning (of those).",
    ["kind"],
)
FIRST_TOKEN_SECONDS = Histogram(
    "moonshard_gateway_first_token_seconds",
    "From the arrival of a request to its first piece of answer, waiting for replicas included.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
)
FIRST_TOKEN_PART_SECONDS = Histogram(
    "moonshard_gateway_first_token_part_seconds",
    "Where the time to the first token went: vision, render, queue (waiting for replicas and for blocks), fetch, "
    "prefill, handoff (the rest of the latent KV to the store), other. A request's parts add up to all of it.",
    ["part"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
)
FIRST_DECODE_SECONDS = Histogram(
    "moonshard_gateway_first_decode_seconds",
    "From the first token, a prefill replica's, to the next, a decode replica's, which fetches the latent KV before.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
)
INTER_TOKEN_SECONDS = PlainHistogram(
    "moonshard_gateway_inter_token_seconds",
    "Time per token of a choice after its first, averaged over what came at once; hand-overs included.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30),
)
REQUEST_SECONDS = Histogram(
    "moonshard_gateway_request_seconds",
    "From the arrival of a request to the last byte of its answer.",
    ["dialect"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1200, 3600),
)
KEY_SERIES = "moonshard_gateway_key_"  # how the names of those begin that tell one user's usage
KEY_REQUESTS = Counter(
    "moonshard_gateway_key_requests_total",
    "Requests that were admitted, by the short name of their API key: 16 digits of its SHA-256.",
    ["key"],
)
KEY_TOKENS = Counter(
    "moonshard_gateway_key_tokens_total",
    "Tokens of finished and of broken requests by API key: prompt, completion.",
    ["key", "kind"],
)
