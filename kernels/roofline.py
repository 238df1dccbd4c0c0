"""Bytes and FLOPs of each operation at the sizes of K2.6, and the least time that an H200 needs for them.

Measured ceilings (RESULTS.md): 4.3 TB/s, bytes read plus bytes written, for a copy on the device; 790 TFLOP/s for a
product of bf16 matrices. The floor is the larger of both times. `python -m kernels.roofline` prints a table of floors.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

BYTES_PER_S: Final = 4.3e12
FLOP_PER_S: Final = 790e12

HIDDEN, HEADS, VOCAB = 7168, 64, 163_840
Q_LORA, LATENT, ROPE, NOPE, VALUE = 1536, 512, 64, 128, 128
EXPERTS, TOP_K, WIDTH = 384, 8, 2048
INT4_BYTES = 0.5625  # of a weight: four bits, and two bytes of scale for 32 of them
EXPERT_BYTES = 3 * HIDDEN * WIDTH * INT4_BYTES

DECODE = (1, 8, 32, 128, 512)
PREFILL = (4096, 32_768)


@dataclass(frozen=True)
class Cost:
    """Bytes between memory and chip, each moved once, and floating-point operations in bf16."""

    num_bytes: float
    num_flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.num_bytes + other.num_bytes, self.num_flops + other.num_flops)

    @property
    def floor_s(self) -> float:
        """Seconds at least."""
        return max(self.num_bytes / BYTES_PER_S, self.num_flops / FLOP_PER_S)


def active_experts(tokens: int) -> float:
    """Return the expected number of experts with a token, if each token draws 8 of 384 evenly."""
    return EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** tokens)


def expert_mlp(tokens: int) -> Cost:
    return routed(tokens, active_experts(tokens), tokens * TOP_K)


def routed(tokens: int, active: float, assignments: float) -> Cost:
    """Both products of the active experts; the inner vector is written and read, the parts are written."""
    moved = tokens * HIDDEN + assignments * (2 * WIDTH + HIDDEN)
    return Cost(active * EXPERT_BYTES + 2 * moved, 2 * assignments * 3 * HIDDEN * WIDTH)


def combine(tokens: int, assignments: float | None = None) -> Cost:
    """Read the experts' results of each token, by default all 8; write their sums in float32."""
    parts = tokens * TOP_K if assignments is None else assignments
    return Cost(HIDDEN * (2 * parts + 4 * tokens))


def align_tokens(tokens: int) -> Cost:
    return Cost(8 * tokens * TOP_K)


def linear(rows: int, columns: int, tokens: int, out_bytes: int = 2) -> Cost:
    return Cost(2 * rows * columns + tokens * (2 * columns + out_bytes * rows), 2 * tokens * rows * columns)


def choose(tokens: int) -> Cost:
    return Cost(4 * tokens * (EXPERTS + 2 * TOP_K))


def rms_norm(tokens: int, width: int = HIDDEN) -> Cost:
    return Cost(4 * tokens * width)


def add_rms_norm(tokens: int) -> Cost:
    return Cost(8 * tokens * HIDDEN)


def silu_mul(tokens: int, width: int = WIDTH) -> Cost:
    return Cost(6 * tokens * width)


def rope(tokens: int, heads: int = HEADS) -> Cost:
    return Cost(4 * tokens * heads * ROPE)


def norm_rope_store(tokens: int) -> Cost:
    return Cost(4 * tokens * (LATENT + ROPE))


def mla_decode(rows: int, context: int) -> Cost:
    """Read every latent once for all heads."""
    flops = 2 * rows * context * HEADS * (2 * LATENT + ROPE)
    return Cost(2 * rows * (context * (LATENT + ROPE) + HEADS * (2 * LATENT + ROPE)), flops)


def mla_prefill(tokens: int, context: int) -> Cost:
    """Expand keys and values of the context from its latents, then attend causally from its last tokens."""
    expanded = HEADS * (NOPE + VALUE)
    pairs = tokens * (context - tokens) + tokens * (tokens + 1) / 2
    attention = Cost(
        2 * tokens * HEADS * (NOPE + ROPE + VALUE) + 2 * context * (expanded + ROPE),
        2 * pairs * HEADS * (NOPE + ROPE + VALUE),
    )
    return linear(expanded, LATENT, context) + attention


def sample(rows: int) -> Cost:
    return Cost(4 * rows * VOCAB)


ROWS: Final[dict[str, Callable[[int], Cost]]] = {
    "expert_mlp, both products, 384 experts": expert_mlp,
    "its combine": combine,
    "its align_tokens": align_tokens,
    "route: logits": lambda tokens: linear(EXPERTS, HIDDEN, tokens, out_bytes=4),
    "route: choose": choose,
    "rms_norm 7168": rms_norm,
    "add_rms_norm": add_rms_norm,
    "norm_rope_store": norm_rope_store,
    "rope of 64 heads": rope,
    "silu_mul 2048": silu_mul,
    "linear q_a + kv_a, 2112 x 7168": lambda tokens: linear(2112, HIDDEN, tokens),
    "linear q_b, 12288 x 1536": lambda tokens: linear(HEADS * (NOPE + ROPE), Q_LORA, tokens),
    "linear o, 7168 x 8192": lambda tokens: linear(HIDDEN, HEADS * VALUE, tokens),
    "linear shared gate_up, 4096 x 7168": lambda tokens: linear(2 * WIDTH, HIDDEN, tokens),
    "linear shared down, 7168 x 2048": lambda tokens: linear(HIDDEN, WIDTH, tokens),
}


def micros(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}" if seconds < 1e-5 else f"{seconds * 1e6:,.0f}"


def table() -> str:
    """Return a Markdown table of floors in microseconds by number of tokens."""
    counts = (*DECODE, *PREFILL)
    lines = [
        "| floor, us | " + " | ".join(f"{count:,}" for count in counts) + " |",
        "| --- |" + " ---: |" * len(counts),
    ]
    for name, cost in ROWS.items():
        lines.append(f"| {name} | " + " | ".join(micros(cost(count).floor_s) for count in counts) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
