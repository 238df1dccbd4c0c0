"""The whole text model of Kimi K2.6 in one file of plain PyTorch: the oracle of every other implementation.

Pictures are in `vision.py`; their features replace the embeddings of the placeholder tokens here.

It shares no code with the rest of the project. It reads a released checkpoint folder with the safetensors library,
unpacks the INT4 experts, and computes each token the long way: keys and values are expanded for every head (no
absorbed form), experts run one by one. Row vectors throughout; a linear with weight W [out, in] is x W^T.

A block:    h = h + attention(norm(h));  h = h + mlp(norm(h))
After all:  logits = norm(h) W_head^T

`dtype` is that of activations and weights. In float32 nothing is rounded: bf16 weights are exact in it, and an
INT4 weight stays q * scale. In bfloat16 every operation rounds its result, as eager PyTorch does, except for the
router, softmax, rotations, norms inside, and the sum over experts, which are fp32.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as nnf

Choose = Callable[[Tensor, int], int]  # logits [vocab] f32 and the new token's position -> its id
Media = Sequence[tuple[int, Tensor]]  # the place of the first placeholder, and the features [tokens, hidden]


@dataclass
class Context:
    """The latent KV of a text, per layer: normalised latents [t, kv_lora] and rotated rope keys [t, rope]."""

    latents: list[Tensor] = field(default_factory=list)
    rope_keys: list[Tensor] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.latents[0]) if self.latents else 0

    def extend(self, layer: int, latent: Tensor, rope_key: Tensor) -> tuple[Tensor, Tensor]:
        """Append new tokens to one layer; return all tokens of that layer."""
        if layer == len(self.latents):
            self.latents.append(latent)
            self.rope_keys.append(rope_key)
        else:
            self.latents[layer] = torch.cat([self.latents[layer], latent])
            self.rope_keys[layer] = torch.cat([self.rope_keys[layer], rope_key])
        return self.latents[layer], self.rope_keys[layer]


def greedy(logits: Tensor, position: int) -> int:
    """Return the most likely token; the lowest id of several equal ones."""
    del position
    return int(logits.argmax())


class ReferenceModel:
    """A checkpoint's language model, all of it in memory.

    latent_norm_eps  epsilon of the two norms inside attention; the released code leaves it at 1e-6 although
                     `rms_norm_eps` of the other norms is 1e-5
    fp8_latents      what is kept of a token is rounded: the latent to FP8, the rope key to bfloat16
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        latent_norm_eps: float = 1e-6,
        fp8_latents: bool = False,
    ) -> None:
        self.config = json.loads((folder / "config.json").read_text())["text_config"]
        self.dtype = dtype
        self.latent_norm_eps = latent_norm_eps
        self.fp8_latents = fp8_latents
        self.weights = read_weights(folder, dtype)
        self.inv_freq = yarn_frequencies(self.config)

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Sequence[int],
        num_tokens: int,
        *,
        choose: Choose = greedy,
        stop_ids: Iterable[int] = (),
        media: Media = (),
    ) -> list[int]:
        """The tokens after the prompt: at most num_tokens, the stop token included when one is chosen."""
        context, new_ids, stops = Context(), list(prompt_ids), set(stop_ids)
        generated: list[int] = []
        while len(generated) < num_tokens and not stops.intersection(generated[-1:]):
            logits = self.forward(new_ids, context, last_only=True, media=media)[-1]
            media = ()
            new_ids = [choose(logits, context.num_tokens)]
            generated += new_ids
        return generated

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int], *, media: Media = ()) -> Tensor:
        """Logits after each token of one text: [tokens, vocab] f32."""
        return self.forward(token_ids, Context(), media=media)

    def forward(
        self, token_ids: Sequence[int], context: Context, *, last_only: bool = False, media: Media = ()
    ) -> Tensor:
        """Logits [tokens, vocab] f32 (or of the last token only) of new tokens that follow the context."""
        w, eps = self.weights, self.config["rms_norm_eps"]
        positions = torch.arange(context.num_tokens, context.num_tokens + len(token_ids))
        hidden = w["model.embed_tokens.weight"][torch.tensor(token_ids)]
        for offset, features in media:
            hidden[offset : offset + len(features)] = features.to(self.dtype)
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            x = rms_norm(hidden, w[f"{prefix}.input_layernorm.weight"], eps)
            hidden = hidden + self.attention(x, layer, positions, context)
            x = rms_norm(hidden, w[f"{prefix}.post_attention_layernorm.weight"], eps)
            dense = layer < self.config["first_k_dense_replace"]
            hidden = hidden + (self.swiglu(x, f"{prefix}.mlp") if dense else self.experts(x, f"{prefix}.mlp"))
        hidden = rms_norm(hidden[-1:] if last_only else hidden, w["model.norm.weight"], eps)
        return nnf.linear(hidden, w["lm_head.weight"]).float()

    def attention(self, x: Tensor, layer: int, positions: Tensor, context: Context) -> Tensor:
        """Multi-head latent attention, not absorbed; x and result [t, hidden].

        q[h] = (norm(x W_qa^T) W_qb^T)[h] = [q_nope, rope(q_pe)];  [c, k_pe] = x W_kva^T;  c = norm(c)
        [k_nope[h], v[h]] = (c W_kvb^T)[h];  k[h] = [k_nope[h], rope(k_pe)], the same k_pe for every head
        out = concat_h(softmax(q[h] k[h]^T * scale) v[h]) W_o^T
        """
        c = self.config
        heads, nope, rope_dim, v_dim = (
            c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        q_latent = self.latent_norm(self.linear(x, layer, "q_a_proj"), layer, "q_a_layernorm")
        q = self.linear(q_latent, layer, "q_b_proj").view(-1, heads, nope + rope_dim)
        q_nope, q_pe = q.split([nope, rope_dim], dim=-1)
        q_pe = rotate(q_pe, positions, self.inv_freq)
        latent, k_pe = self.linear(x, layer, "kv_a_proj_with_mqa").split([c["kv_lora_rank"], rope_dim], dim=-1)
        latent = self.latent_norm(latent, layer, "kv_a_layernorm")
        k_pe = rotate(k_pe.unsqueeze(1), positions, self.inv_freq).squeeze(1)
        if self.fp8_latents:
            latent, k_pe = rounded_to_fp8(latent), k_pe.bfloat16().to(self.dtype)
        latent, k_pe = context.extend(layer, latent, k_pe)

        k_nope, v = self.linear(latent, layer, "kv_b_proj").view(-1, heads, nope + v_dim).split([nope, v_dim], dim=-1)
        k = torch.cat([k_nope, k_pe.unsqueeze(1).expand(-1, heads, -1)], dim=-1)
        scores = torch.einsum("qhd,khd->hqk", torch.cat([q_nope, q_pe], dim=-1), k).float() * softmax_scale(c)
        future = torch.arange(len(k)) > positions.unsqueeze(1)  # [queries, keys]
        chances = scores.masked_fill(future, -math.inf).softmax(dim=-1).to(self.dtype)
        out = torch.einsum("hqk,khd->qhd", chances, v).reshape(len(x), heads * v_dim)
        return self.linear(out, layer, "o_proj")

    def experts(self, x: Tensor, prefix: str) -> Tensor:
        """Shared expert plus the weighted sum of the chosen routed experts; x and result [t, hidden]."""
        ids, weights = self.route(x, prefix)
        routed = torch.zeros(x.shape, dtype=torch.float32)
        for expert in ids.unique().tolist():
            token, choice = torch.where(ids == expert)
            y = self.swiglu(x[token], f"{prefix}.experts.{expert}")
            routed[token] += y.float() * weights[token, choice, None]
        return routed.to(self.dtype) + self.swiglu(x, f"{prefix}.shared_experts")

    def route(self, x: Tensor, prefix: str) -> tuple[Tensor, Tensor]:
        """Ids [t, top_k] and weights [t, top_k] f32 of the experts for each token; fp32 throughout.

        score = sigmoid(x W^T); chosen are the largest score + bias, within the best `topk_group` groups, where a
        group is worth its two best; weight = score / (sum of chosen scores + 1e-20) * scaling, without the bias.
        """
        c = self.config
        scores = nnf.linear(x.float(), self.weights[f"{prefix}.gate.weight"].float()).sigmoid()
        choice = scores + self.weights[f"{prefix}.gate.e_score_correction_bias"]
        if c["n_group"] > 1:
            grouped = choice.view(len(x), c["n_group"], -1)
            best = grouped.topk(2).values.sum(-1).topk(c["topk_group"]).indices
            kept = torch.zeros(len(x), c["n_group"], dtype=torch.bool).scatter(1, best, True)
            choice = grouped.masked_fill(~kept.unsqueeze(-1), 0.0).flatten(1)
        ids = choice.topk(c["num_experts_per_tok"]).indices
        weights = scores.gather(1, ids)
        if c["norm_topk_prob"]:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * c["routed_scaling_factor"]

    def swiglu(self, x: Tensor, prefix: str) -> Tensor:
        """down(silu(gate(x)) * up(x))."""
        gate, up, down = (self.weights[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return nnf.linear(nnf.silu(nnf.linear(x, gate)) * nnf.linear(x, up), down)

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        """One of the projections of a layer's attention."""
        return nnf.linear(x, self.weights[f"model.layers.{layer}.self_attn.{name}.weight"])

    def latent_norm(self, x: Tensor, layer: int, name: str) -> Tensor:
        """One of the two norms inside a layer's attention."""
        return rms_norm(x, self.weights[f"model.layers.{layer}.self_attn.{name}.weight"], self.latent_norm_eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in fp32, back to the dtype of x, then times the weight."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rounded_to_fp8(latent: Tensor) -> Tensor:
    """Each 128 numbers of latents [t, n] as e4m3 multiples of the smallest power of two for which they are in range."""
    groups = []
    for group in latent.double().split(128, dim=-1):
        mantissa, exponent = torch.frexp(group.abs().amax(dim=-1, keepdim=True) / 448)  # mantissa in [0.5, 1)
        scale = torch.exp2((exponent - (mantissa == 0.5).int()).double())
        groups.append((group / scale).float().to(torch.float8_e4m3fn).double() * scale)
    return torch.cat(groups, dim=-1).to(latent.dtype)


def rotate(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Turns pair i, dims (2 i, 2 i + 1), of x [t, heads, d] by the angle position * inv_freq[i], in fp32."""
    angle = (positions.unsqueeze(-1).float() * inv_freq).unsqueeze(1)  # [t, 1, d / 2]
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def yarn_frequencies(c: dict) -> Tensor:
    """Radians per position of each pair: [rope / 2] f32.

    theta_i = base^(-2i/d). A pair that turns more than beta_fast times within the original length keeps theta_i, one
    that turns fewer than beta_slow times gets theta_i / factor, and a linear ramp over i joins the two.
    """
    d, base, yarn = c["qk_rope_head_dim"], c["rope_theta"], c["rope_scaling"]
    theta = torch.tensor([base ** (-2 * i / d) for i in range(d // 2)], dtype=torch.float64)
    if yarn is None:
        return theta.float()
    original = yarn["original_max_position_embeddings"]

    def pair(turns: float) -> float:
        return d * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(pair(yarn["beta_fast"])), 0), min(math.ceil(pair(yarn["beta_slow"])), d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float64) - low) / (high - low if high > low else 0.001)).clamp(0, 1)
    return (theta * (1 - ramp) + theta / yarn["factor"] * ramp).float()


def softmax_scale(c: dict) -> float:
    """(nope + rope)^-0.5 * m^2 with YaRN's m = 0.1 * mscale_all_dim * ln(factor) + 1, at every length."""
    scale, yarn = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5, c["rope_scaling"]
    if yarn is None or yarn["factor"] <= 1 or not yarn["mscale_all_dim"]:
        return scale
    m = 0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) + 1
    return scale * m * m


def read_weights(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of the language model in `dtype`, named without "language_model."; INT4 unpacked, bias fp32."""
    weights: dict[str, Tensor] = {}
    for name, tensor in stored_tensors(folder):
        if name.endswith((".weight_scale", ".weight_shape")):
            continue
        if name.endswith(".weight_packed"):
            weights[name.removesuffix("_packed")] = tensor
        else:
            weights[name] = tensor if name.endswith("_bias") else tensor.to(dtype)
    scales = {name.removesuffix("_scale"): t for name, t in stored_tensors(folder) if name.endswith(".weight_scale")}
    return weights | {name: unpack(weights[name], scale).to(dtype) for name, scale in scales.items()}


def stored_tensors(folder: Path) -> Iterable[tuple[str, Tensor]]:
    """Every tensor of the language model as it is stored, file by file."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no dict
                if name.startswith("language_model."):
                    yield name.removeprefix("language_model."), tensors.get_tensor(name)


def unpack(packed: Tensor, scale: Tensor) -> Tensor:
    """W[o, k] = (nibble - 8) * scale[o, k // 32] in fp32; nibble j of a word is bits 4 j .. 4 j + 3, lowest first."""
    nibbles = torch.stack([(packed >> shift) & 15 for shift in range(0, 32, 4)], dim=-1).flatten(-2)
    return (nibbles - 8).float() * scale.float().repeat_interleave(32, dim=-1)
