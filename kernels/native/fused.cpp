// Several operations in one call: the same functions on the same numbers, without Python between them. In a small model,
// Python between the operations of a one-token step takes as long as reading a third of the weights.
#include "operations.h"
#include "parallel.h"

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

struct MlaWeights {
  const uint8_t* qkv_a;
  const uint16_t* q_a_norm;
  const uint8_t* q_b;
  const uint16_t* kv_a_norm;
  const uint8_t *key_absorbed, *value_up, *o;
  const float* inv_freq;
};

struct MlaSizes {
  int64_t hidden, q_lora, latent, rope, heads, nope, v;
};

// cache_strides  of a block and of a token
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

}  // extern "C"
