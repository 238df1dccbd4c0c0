"""The metrics of an attention replica."""

from prometheus_client import Counter, Gauge, Histogram

WAIT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)

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
STEP_GENERATIONS = Histogram(
    "moonshard_step_generations",
    "Generations in one forward pass: the size of the batch.",
    ["role"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
TOKENS = Counter("moonshard_tokens_total", "Tokens computed (prompt) and sampled (generated).", ["kind"])
PREFIX_TOKENS = Counter(
    "moonshard_prefix_tokens_total",
    "Prompt tokens by where their latent KV came from: this replica's memory, the store, or computed here.",
    ["role", "source"],
)
QUEUE_SECONDS = Histogram(
    "moonshard_queue_seconds",
    "From the arrival of a generation until there were blocks for it.",
    ["role"],
    buckets=WAIT_BUCKETS,
)
PREFILL_SECONDS = Histogram(
    "moonshard_prefill_seconds",
    "From the first step that a generation could be part of until its first token; what shared the steps included.",
    ["role"],
    buckets=WAIT_BUCKETS,
)
HANDOFF_SECONDS = Histogram(
    "moonshard_handoff_seconds",
    "What a generation waited for the store: fetching before it ran, publishing the rest before it was handed over.",
    ["direction"],
    buckets=WAIT_BUCKETS,
)
GENERATIONS = Gauge("moonshard_generations", "Generations in this replica by phase.", ["phase"])
BLOCKS = Gauge("moonshard_kv_blocks", "Blocks of latent KV by state.", ["state"])
BLOCK_FAULTS = Counter(
    "moonshard_kv_block_faults_total",
    "Faults that an idle engine found in its bookkeeping of blocks; the log names them. Anything but 0 is a bug.",
)
PREEMPTIONS = Counter("moonshard_preemptions_total", "Generations sent back to wait because blocks were short.")
DRAFT_TOKENS = Counter(
    "moonshard_draft_tokens_total", "Drafted tokens by whether they were drawn, too: accepted or rejected.", ["outcome"]
)
DRAFT_SECONDS_SAVED = Gauge(
    "moonshard_draft_saved_seconds",
    "What steps with drafts saved since the start, by what steps without drafts cost; below 0: they cost more.",
)
FINISHED = Counter("moonshard_generations_finished_total", "Generations by how they ended.", ["reason"])
PUBLISHED_BLOCKS = Counter("moonshard_kv_blocks_published_total", "Blocks given to the store by outcome.", ["outcome"])
FETCHED_BLOCKS = Counter("moonshard_kv_blocks_fetched_total", "Blocks asked of the store by outcome.", ["outcome"])
HANDOFF_BYTES = Counter("moonshard_handoff_bytes_total", "Latent KV moved to and from the store.", ["direction"])
GRAMMAR_COMPILE_SECONDS = Histogram(
    "moonshard_grammar_compile_seconds",
    "Making the constraint of one generation, the wait for the thread that does it included.",
    buckets=WAIT_BUCKETS,
)
GRAMMAR_WAIT_SECONDS = Histogram(
    "moonshard_grammar_wait_seconds",
    "What a step with constrained generations waited for their masks when its logits were there.",
    buckets=(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1),
)
