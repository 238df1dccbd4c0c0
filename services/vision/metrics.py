"""Metrics of a vision replica."""

from prometheus_client import Counter, Gauge, Histogram

MEDIA = Counter(
    "moonshard_vision_media_total",
    "Files by kind and outcome: computed, cached (nothing was decoded) or refused.",
    ["kind", "outcome"],
)
CHUNKS = Counter(
    "moonshard_vision_chunks_total",
    "Images and video chunks that were decoded, by where their features came from: computed or store.",
    ["source"],
)
DECODE_SECONDS = Histogram(
    "moonshard_vision_decode_seconds",
    "One file from its bytes to the pixels of its first chunk; waiting for a free decoder included.",
    ["kind"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
BATCH_SECONDS = Histogram(
    "moonshard_vision_batch_seconds",
    "Tower and projector over one batch.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120),
)
BATCH_PATCHES = Histogram(
    "moonshard_vision_batch_patches",
    "Patches in one batch.",
    buckets=(16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768),
)
UPLOAD_BYTES = Gauge("moonshard_vision_upload_bytes", "Bytes announced by the calls that are running.")
