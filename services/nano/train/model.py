"""Nano's language model for training: the forward pass (`services/model`) on many conversations, in float32.

Weights have their stored precision: INT4 for routed experts, bf16 for all others, f32 for the router's bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from services.checkpoint.config import TextConfig
from services.model.rope import yarn_inv_freq
from services.nano.train.straight_through import as_bf16, as_int4

LATENT_NORM_EPS = 1e-6  # the two norms inside attention, as in the released code


def matrix(*shape: int, gain: float = 1.0) -> nn.Parameter:
    """Return a random weight [..., out, in] that preserves the magnitude of its input, times `gain`."""
    return nn.Parameter(torch.randn(shape) * gain * shape[-1] ** -0.5)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T with the weight rounded to bf16."""
    return nnf.linear(x, as_bf16(weight))


@dataclass(frozen=True)
class Layout:
    """Groups for attention of the conversations in a list of tokens.

    shapes  for each group its number of conversations and the length to which they are padded on the right
    places  [padded] i64: index of the token at each place of the groups; any index for padding
    real    [tokens] i64: place of each token in the groups
    """

    shapes: Sequence[tuple[int, int]]
    places: Tensor
    real: Tensor


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nnf.rms_norm(x.float(), self.weight.shape, as_bf16(self.weight), self._eps)


class Attention(nn.Module):
    """Multi-head latent attention, not absorbed; parameters under the names of AttentionWeights."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        c = config
        self._config = c
        self.q_a = matrix(c.q_lora_rank, c.hidden_size)
        self.q_a_norm = RmsNorm(c.q_lora_rank, LATENT_NORM_EPS)
        self.q_b = matrix(c.num_attention_heads * c.qk_head_dim, c.q_lora_rank)
        self.kv_a = matrix(c.latent_dim, c.hidden_size)
        self.kv_a_norm = RmsNorm(c.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b = matrix(c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
        self.o = matrix(c.hidden_size, c.num_attention_heads * c.v_head_dim, gain=0.3)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        """x [tokens, hidden]; turn: cos and sin [tokens, 1, rope / 2]."""
        c = self._config
        heads = c.num_attention_heads
        query = linear(self.q_a_norm(linear(x, self.q_a)), self.q_b).view(-1, heads, c.qk_head_dim)
        latent, rope_key = torch.split(linear(x, self.kv_a), [c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        key_value = linear(self.kv_a_norm(latent), self.kv_b).view(len(x), heads, -1)
        key, value = torch.split(key_value, [c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        query_nope, query_rope = torch.split(query, [c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        rope_key = rotate(rope_key.unsqueeze(1), turn).expand(-1, heads, -1)
        # Query, key and value of a head are adjacent, so that one indexing puts all of them into the groups.
        together = torch.cat((query_nope, rotate(query_rope, turn), key, rope_key, value), dim=-1)
        padded = together.flatten(1).index_select(0, layout.places).view(-1, heads, together.shape[-1])
        pieces = torch.split(padded, [conversations * length for conversations, length in layout.shapes])
        seen = [
            self._attend(piece.view(*shape, *piece.shape[1:]))
            for piece, shape in zip(pieces, layout.shapes, strict=True)
        ]
        return linear(torch.cat(seen).index_select(0, layout.real), self.o)

    def _attend(self, group: Tensor) -> Tensor:
        """Attend in a group [conversations, t, heads, query + key + value]; return [places, heads * v]."""
        c = self._config
        widths = [c.qk_head_dim, c.qk_head_dim, c.v_head_dim]
        query, key, value = torch.split(group.transpose(1, 2), widths, dim=-1)
        # Padding is on the right, so the causal mask suffices.
        seen = nnf.scaled_dot_product_attention(query, key, value, is_causal=True, scale=c.softmax_scale)
        return seen.transpose(1, 2).flatten(2).flatten(0, 1)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate = matrix(width, hidden)
        self.up = matrix(width, hidden)
        self.down = matrix(hidden, width, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return linear(nnf.silu(linear(x, self.gate)) * linear(x, self.up), self.down)


class Experts(nn.Module):
    """Router, routed experts and the shared one. `bias` affects only the choice; it is set by load, not by gradient.

    load  tokens of each expert since the last call of `balance`
    """

    bias: Tensor
    load: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        c = config
        self._config = c
        width = c.moe_intermediate_size
        self.router = matrix(c.n_routed_experts, c.hidden_size)
        self.gate = matrix(c.n_routed_experts, width, c.hidden_size)
        self.up = matrix(c.n_routed_experts, width, c.hidden_size)
        self.down = matrix(c.n_routed_experts, c.hidden_size, width, gain=0.3)
        self.shared = Mlp(c.hidden_size, width * c.n_shared_experts)
        self.register_buffer("bias", torch.zeros(c.n_routed_experts))
        self.register_buffer("load", torch.zeros(c.n_routed_experts))

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, hidden]."""
        shares = self.route(x)
        with torch.no_grad():
            self.load += (shares > 0).sum(0)
        routed = self.all_at_once(x, shares) if x.is_cuda else self.one_by_one(x, shares)
        shared: Tensor = self.shared(x)
        return shared + routed

    def route(self, x: Tensor) -> Tensor:
        """Return the weight of each expert for each token, [tokens, experts]; chosen by score + bias."""
        with torch.autocast(x.device.type, enabled=False):
            scores = linear(x.float(), self.router).sigmoid()
        ids = (scores.detach() + self.bias).topk(self._config.num_experts_per_tok).indices
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self._config.routed_scaling_factor
        return torch.zeros_like(scores).scatter(1, ids, weights)

    def one_by_one(self, x: Tensor, shares: Tensor) -> Tensor:
        """Run each expert on its own tokens: the least arithmetic, for a CPU."""
        experts, tokens = (shares > 0).T.nonzero(as_tuple=True)
        sizes = experts.bincount(minlength=len(self.bias)).tolist()
        pieces = torch.split(x[tokens], sizes)
        gates, ups = torch.cat(list(map(nnf.linear, pieces, self._gate_up().unbind()))).chunk(2, dim=-1)
        inner = torch.split(nnf.silu(gates) * ups, sizes)
        out = torch.cat(list(map(nnf.linear, inner, as_int4(self.down).unbind())))
        return torch.zeros_like(x).index_add(0, tokens, out * shares[tokens, experts].unsqueeze(1))

    def all_at_once(self, x: Tensor, shares: Tensor) -> Tensor:
        """Run every expert on every token in two products: for a GPU, where waiting for counts would cost more."""
        num_experts, width, _ = self.gate.shape
        gates_ups = nnf.linear(x, self._gate_up().flatten(0, 1)).view(-1, num_experts, 2, width)
        inner = nnf.silu(gates_ups[:, :, 0]) * gates_ups[:, :, 1]
        weighted = inner * shares.to(inner.dtype).unsqueeze(2)
        return nnf.linear(weighted.flatten(1), as_int4(self.down).transpose(0, 1).flatten(1))

    def _gate_up(self) -> Tensor:
        return as_int4(torch.cat((self.gate, self.up), dim=1))

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Make experts with less than the mean load more likely, the others less (arXiv 2408.15664)."""
        self.bias += rate * (self.load.mean() - self.load).sign()
        self.load.zero_()


class Block(nn.Module):
    """h = h + attention(norm(h));  h = h + mlp(norm(h))."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.input_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.post_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        moe = config.is_moe(layer)
        self.mlp: Experts | Mlp = Experts(config) if moe else Mlp(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        """hidden [tokens, hidden]."""
        hidden = hidden + self.attention(self.input_norm(hidden), turn, layout)
        out: Tensor = hidden + self.mlp(self.post_norm(hidden))
        return out


class TextModel(nn.Module):
    """Embedding, blocks, final norm and head."""

    inv_freq: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.5)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)
        self.register_buffer("inv_freq", yarn_inv_freq(config), persistent=False)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        layout: Layout,
        media: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the logits after every token, [tokens, vocab].

        token_ids  [tokens] i64, conversations one after another
        positions  [tokens] i64 of each token in its conversation
        layout     groups for attention
        media      places [n] i64 among the tokens, and their features [n, hidden]
        """
        hidden = nnf.embedding(token_ids, as_bf16(self.embedding))
        if media is not None:
            places, features = media
            hidden = hidden.index_copy(0, places, features.float())
        angles = (positions.unsqueeze(1) * self.inv_freq).unsqueeze(1)
        turn = angles.cos(), angles.sin()
        for block in self.blocks:
            hidden = block(hidden, turn, layout)
        return linear(self.final_norm(hidden), self.head)

    def balance(self, rate: float) -> None:
        """Update the bias of every router."""
        for block in self.blocks:
            if isinstance(block.mlp, Experts):
                block.mlp.balance(rate)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of x; cos and sin of each pair's angle broadcast over x."""
    cos, sin = turn
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
