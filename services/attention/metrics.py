"""What an attention replica counts."""

from prometheus_client import Counter, Gauge, Histogram

STEP_SECONDS = Histogram(
    "moonshard_step_seconds",
    "One forward pass over a batch, expert round trips and sampling included.",
    ["role"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
STEP_TOKENS = Histogram(
    "moonshard_step_tokens",
    "Tokens in one forward pass, by whether they continue an answer or belong to a prompt.",
    ["kind"],
    buckets=(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
)
TOKENS = Counter("moonshard_tokens_total", "Tokens computed (prompt) and sampled (generated).", ["kind"])
CACHED_TOKENS = Counter("moonshard_cached_tokens_total", "Prompt tokens whose latent KV was found, not computed.")
GENERATIONS = Gauge("moonshard_generations", "Generations in this replica by phase.", ["phase"])
BLOCKS = Gauge("moonshard_kv_blocks", "Blocks of latent KV by state.", ["state"])
PREEMPTIONS = Counter("moonshard_preemptions_total", "Generations sent back to wait because blocks were short.")
FINISHED = Counter("moonshard_generations_finished_total", "Generations by how they ended.", ["reason"])
PUBLISHED_BLOCKS = Counter("moonshard_kv_blocks_published_total", "Blocks given to the store by outcome.", ["outcome"])
FETCHED_BLOCKS = Counter("moonshard_kv_blocks_fetched_total", "Blocks asked of the store by outcome.", ["outcome"])
HANDOFF_BYTES = Counter("moonshard_handoff_bytes_total", "Latent KV moved to and from the store.", ["direction"])
