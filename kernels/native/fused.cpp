// Several operations in one call: the same functions on the same numbers, without Python between them. In a small model,
// Python between the operations of a one-token step takes as long as reading a third of the weights.
#include <utility>

#include "operations.h"
#include "parallel.h"
#include "simd.h"

namespace moonshard {
namespace {

struct Intermediate;

// Consecutive arrays of numbers of the dtype of the run.
struct Arrays {
  uint8_t* next;
  int64_t item;

  Arrays(int64_t count, int64_t item) : next(scratch<Intermediate, uint8_t>(count * item)), item(item) {}
  uint8_t* take(int64_t count) {
    uint8_t* const taken = next;
    next += count * item;
    return taken;
  }
};

struct StepNumbers;
struct StepSums;
struct StepRoutes;

// hidden += mlp of a dense layer, else routed + mlp, the shared expert. The routed sum is rounded to float32; the additions
// are in it, and one rounding to the dtype of the run follows.
template <class T>
void add_mlp(T* hidden, const double* routed, const T* mlp, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const F16 x = routed ? add(load(routed + i), load(mlp + i)) : load(mlp + i);
    store(hidden + i, add(load(hidden + i), x));
  }
  for (; i < count; i++)
    round_to(hidden + i, widen(hidden[i]) + (routed ? float(routed[i]) + widen(mlp[i]) : widen(mlp[i])));
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

extern "C" {

// down(silu(gate) * up) of x [tokens, in]; gate_up [2 * width, in], down_words [out, width]
void swiglu_mlp(const void* x, int64_t is_bf16, int64_t x_stride, const uint8_t* gate_up, const uint8_t* down, void* y,
                int64_t tokens, int64_t in, int64_t width, int64_t out, int64_t threads) {
  Arrays memory(tokens * 3 * width, is_bf16 ? 2 : 4);
  uint8_t *const both = memory.take(tokens * 2 * width), *const inner = memory.take(tokens * width);
  linear(gate_up, x, is_bf16, both, is_bf16, 1, tokens, in, 2 * width, x_stride, 0, 2 * width, 0, threads);
  silu_mul(both, is_bf16, 2 * width, inner, tokens, width, threads);
  linear(down, inner, is_bf16, y, is_bf16, 1, tokens, width, out, width, 0, out, 0, threads);
}

void absorbed_attention(const void* x, int64_t is_bf16, int64_t x_stride, int64_t tokens, const MlaWeights* weights,
                        const MlaSizes* sizes, float eps, float scale, void* cache, const int64_t* cache_strides,
                        int64_t block_tokens, const int64_t* slots, const int64_t* positions,
                        const int32_t* block_tables, int64_t table_stride, const int32_t* context_lens, void* out,
                        int64_t threads) {
  const MlaWeights& w = *weights;
  const auto [hidden, q_lora, latent, rope_width, heads, nope, v] = *sizes;
  const int64_t down = q_lora + latent + rope_width, query = nope + rope_width, b = is_bf16;
  const int64_t per_token = down + q_lora + heads * (query + rope_width + 2 * latent + v);
  Arrays memory(tokens * per_token, b ? 2 : 4);
  uint8_t* const low = memory.take(tokens * down);  // q_latent, latent, rope_key
  linear(w.qkv_a, x, b, low, b, 1, tokens, hidden, down, x_stride, 0, down, 0, threads);
  norm_rope_store(cache, b, cache_strides[0], cache_strides[1], block_tokens, slots, low + q_lora * memory.item, down,
                  latent, low + (q_lora + latent) * memory.item, down, rope_width, w.kv_a_norm, eps, positions,
                  w.inv_freq, tokens, threads);
  uint8_t* const normed = memory.take(tokens * q_lora);
  rms_norm(low, b, down, w.q_a_norm, normed, tokens, q_lora, eps, threads);
  uint8_t* const q = memory.take(tokens * heads * query);  // nope and rope of each head
  linear(w.q_b, normed, b, q, b, 1, tokens, q_lora, heads * query, q_lora, 0, heads * query, 0, threads);
  uint8_t* const q_rope = memory.take(tokens * heads * rope_width);
  rope(q + nope * memory.item, b, positions, w.inv_freq, q_rope, tokens, heads, rope_width, heads * query, query,
       threads);
  uint8_t* const q_latent = memory.take(tokens * heads * latent);
  linear(w.key_absorbed, q, b, q_latent, b, heads, tokens, nope, latent, heads * query, query, heads * latent, latent,
         threads);
  uint8_t* const o_latent = memory.take(tokens * heads * latent);
  const int64_t strides[] = {heads * latent,   latent,           heads * rope_width, rope_width,
                             cache_strides[0], cache_strides[1], table_stride};
  mla_decode(q_latent, q_rope, cache, b, block_tables, context_lens, o_latent, tokens, heads, latent, rope_width,
             block_tokens, strides, scale, threads);
  uint8_t* const values = memory.take(tokens * heads * v);
  linear(w.value_up, o_latent, b, values, b, heads, tokens, latent, v, heads * latent, latent, heads * v, v, threads);
  linear(w.o, values, b, out, b, 1, tokens, heads * v, hidden, heads * v, 0, hidden, 0, threads);
}

// A layer without its router has a dense MLP; else `gate_up` and `down` are the shared expert.
struct StepLayer {
  const uint16_t *input_norm, *post_norm;
  MlaWeights attention;
  const uint8_t *gate_up, *down;
  const float *gate, *bias;
  const uint8_t* const* experts;
  int64_t* token_counts;  // by local expert
  void* cache;
  int64_t mlp_width;
};

struct StepSizes {
  MlaSizes mla;
  int64_t is_bf16, layers, experts, expert_width, top_k, groups, topk_groups, normalize, block_tokens;
  int64_t cache_strides[2];
  const int32_t* local_index;  // of each expert among the packed ones
  float eps, latent_eps, softmax_scale, route_scale;
};

struct StepRows {
  int64_t tokens, table_stride;
  const int64_t *slots, *positions;
  const int32_t *block_tables, *context_lens;
};

// hidden [tokens, hidden], in and out
void decode_step(const StepLayer* layers, const StepSizes* sizes, const StepRows* rows, void* hidden, int64_t threads) {
  const StepSizes& s = *sizes;
  const StepRows& r = *rows;
  const int64_t width = s.mla.hidden, tokens = r.tokens, count = tokens * width, b = s.is_bf16;
  uint8_t* const numbers = scratch<StepNumbers, uint8_t>(4 * count * (b ? 2 : 4));
  const auto part = [&](int64_t index) { return numbers + index * count * (b ? 2 : 4); };
  void *const x = part(0), *const heads = part(1), *const mlp = part(2), *total = part(3), *now = hidden;
  double* const routed = scratch<StepSums, double>(count);
  int32_t* const ids = scratch<StepRoutes, int32_t>(2 * tokens * s.top_k);
  float* const weights = reinterpret_cast<float*>(ids + tokens * s.top_k);
  for (int64_t place = 0; place < s.layers; place++) {
    const StepLayer& layer = layers[place];
    rms_norm(now, b, width, layer.input_norm, x, tokens, width, s.eps, threads);
    absorbed_attention(x, b, width, tokens, &layer.attention, &s.mla, s.latent_eps, s.softmax_scale, layer.cache,
                       s.cache_strides, s.block_tokens, r.slots, r.positions, r.block_tables, r.table_stride,
                       r.context_lens, heads, threads);
    add_rms_norm(now, b, width, heads, width, layer.post_norm, total, x, tokens, width, s.eps, threads);
    std::swap(now, total);
    if (layer.gate) {
      route(x, b, width, layer.gate, layer.bias, tokens, s.experts, width, s.top_k, s.groups, s.topk_groups, s.normalize,
            s.route_scale, ids, weights, threads);
      for (int64_t i = 0; i < tokens * s.top_k; i++) layer.token_counts[ids[i] = s.local_index[ids[i]]]++;
      expert_mlp(layer.experts, s.experts, width, s.expert_width, x, b, width, ids, weights, tokens, s.top_k, routed,
                 threads);
    }
    swiglu_mlp(x, b, width, layer.gate_up, layer.down, mlp, tokens, width, layer.mlp_width, width, threads);
    const double* const sums = layer.gate ? routed : nullptr;
    if (b)
      add_mlp(static_cast<uint16_t*>(now), sums, static_cast<uint16_t*>(mlp), count);
    else
      add_mlp(static_cast<float*>(now), sums, static_cast<float*>(mlp), count);
  }
  if (now != hidden) std::memcpy(hidden, now, size_t(count * (b ? 2 : 4)));
}

}  // extern "C"
