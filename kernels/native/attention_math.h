// In which numbers decode attention computes: float32 everywhere, or pairs of bf16 where the CPU multiplies those.
#pragma once
#include "simd.h"

namespace moonshard {
namespace {

constexpr int64_t TILE_TOKENS = 64;
constexpr int64_t LANES = 16;

// Tokens of a tile as the products read them.
template <class Unit>
struct Tokens {
  const Unit* at;
  int64_t stride;  // units from one to the next
};

// float32, from a cache of either dtype.
template <class T>
struct FloatMath {
  using Cached = T;
  using Unit = float;
  using Lanes = F16;
  static constexpr bool AS_CACHED = sizeof(T) == sizeof(Unit);  // whether units stand in the cache as they are

  static int64_t units(int64_t count) { return count; }
  static Lanes load_lanes(const float* w) { return load(w); }
  static F16 multiply_add(F16 sum, F16 w, float x) { return fma(splat(x), w, sum); }
  static F16 rounded(F16 weight) { return weight; }
  // One head's numbers [first, first + count) of the key into its lane.
  static void put(const T* from, int64_t first, int64_t count, int64_t lane, float* queries) {
    for (int64_t d = 0; d < count; d++) queries[(first + d) * LANES + lane] = widen(from[d]);
  }

  static void read(const T* from, int64_t width, float* to) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) store(to + d, load(from + d));
    for (; d < width; d++) to[d] = widen(from[d]);
  }
  // Softmax weights [tokens][16] and tokens serve as they are.
  static const float* pack_weights(const float* weights, int64_t, float*) { return weights; }
  template <class Memory>
  static Tokens<float> as_values(const Tokens<float>& keys, int64_t, int64_t, const Memory&) {
    return keys;
  }
};

#ifdef MOONSHARD_AVX512
// Words of two bf16, neighbours in the summed dimension: two columns of a key, two tokens of the values. The softmax
// weights are rounded to bf16 and summed as rounded.
struct Bf16Math {
  using Cached = uint16_t;
  using Unit = uint32_t;
  using Lanes = W16;
  static constexpr bool AS_CACHED = true;

  static int64_t units(int64_t count) { return (count + 1) / 2; }
  static Lanes load_lanes(const uint32_t* w) { return load_words(w); }
  static F16 multiply_add(F16 sum, W16 w, uint32_t x) { return bf16_dot(sum, w, x); }
  static F16 rounded(F16 weight) {
    uint16_t half[LANES];
    store(half, weight);
    return load(half);
  }
  static void put(const uint16_t* from, int64_t first, int64_t count, int64_t lane, uint32_t* queries) {
    for (int64_t d = 0; d < count; d += 2) std::memcpy(queries + (first + d) / 2 * LANES + lane, from + d, 4);
  }
  static void read(const uint16_t* from, int64_t width, uint32_t* to) { std::memcpy(to, from, size_t(width) * 2); }

  static const uint32_t* pack_weights(const float* weights, int64_t tokens, uint32_t* out) {
    for (int64_t t = 0; t < tokens; t += 2) {
      uint16_t even[LANES], odd[LANES] = {};
      store(even, load(weights + t * LANES));
      if (t + 1 < tokens) store(odd, load(weights + (t + 1) * LANES));
      for (int64_t lane = 0; lane < LANES; lane++) out[t / 2 * LANES + lane] = even[lane] | uint32_t(odd[lane]) << 16;
    }
    return out;
  }

  // Tokens -> [token pairs][latent], the two tokens of a pair in one word; the pair of a last odd token is 0.
  template <class Memory>
  static Tokens<uint32_t> as_values(const Tokens<uint32_t>& keys, int64_t tokens, int64_t latent, const Memory& memory) {
    uint32_t* out = memory(units(tokens) * latent);
    for (int64_t t = 0; t < tokens; t += 2) {
      const uint16_t* even = reinterpret_cast<const uint16_t*>(keys.at + t * keys.stride);
      const uint16_t* odd = even + 2 * keys.stride;
      uint32_t* to = out + t / 2 * latent;
      if (t + 1 < tokens)
        for (int64_t d = 0; d < latent; d++) to[d] = even[d] | uint32_t(odd[d]) << 16;
      else
        for (int64_t d = 0; d < latent; d++) to[d] = even[d];
    }
    return {out, latent};
  }
};
#else
using Bf16Math = FloatMath<uint16_t>;
#endif

// How a tile's result joins what a row has: (nothing) or old * keep + new * take, per head.
struct Joining {
  const float* keep = nullptr;
  const float* take = nullptr;

  void put(float* to, F16 fresh, int head) const {
    if (keep)
      store(to, fma(load(to), splat(keep[head]), mul(fresh, splat(take[head]))));
    else
      store(to, fresh);
  }
};

// out[m][r] of M tokens and R times sixteen lanes: sum of x[m * x_token + k * x_step] times w[k * w_step + r * 16 + lane]
template <class Math, int M, int R>
void tile_product(const typename Math::Unit* x, int64_t x_token, int64_t x_step, const typename Math::Unit* w,
                  int64_t w_step, int64_t steps, float* out, int64_t out_token, const Joining& joining = {}) {
  F16 sums[M][R];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sums[m][r] = zeros();
  for (int64_t k = 0; k < steps; k++, x += x_step, w += w_step) {
    typename Math::Lanes weight[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) weight[r] = Math::load_lanes(w + r * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) sums[m][r] = Math::multiply_add(sums[m][r], weight[r], x[m * x_token]);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) joining.put(out + m * out_token + r * LANES, sums[m][r], m);
}

// scores [tokens][16] = keys times queries [units][16]
template <class Math>
void score_tokens(const Tokens<typename Math::Unit>& keys, int64_t units, int64_t tokens,
                  const typename Math::Unit* queries, float* scores) {
  constexpr int MANY = MAX_TILE_TOKENS;
  const auto at = [&](int64_t t) { return keys.at + t * keys.stride; };
  int64_t t = 0;
  for (; t + MANY <= tokens; t += MANY)
    tile_product<Math, MANY, 1>(at(t), keys.stride, 1, queries, LANES, units, scores + t * LANES, LANES);
  for (; t + 4 <= tokens; t += 4)
    tile_product<Math, 4, 1>(at(t), keys.stride, 1, queries, LANES, units, scores + t * LANES, LANES);
  for (; t < tokens; t++)
    tile_product<Math, 1, 1>(at(t), keys.stride, 1, queries, LANES, units, scores + t * LANES, LANES);
}

// M heads, all latents. Lanes past the last latent are computed from zeros and dropped.
template <class Math, int M>
void weigh_heads(const typename Math::Unit* weights, const Tokens<typename Math::Unit>& values, int64_t steps,
                 int64_t latent, float* sums, const Joining& joining) {
  constexpr int WIDE = TILE_REGISTERS >= 16 ? 2 : 1;
  int64_t d = 0;
  for (; d + WIDE * LANES <= latent; d += WIDE * LANES)
    tile_product<Math, M, WIDE>(weights, 1, LANES, values.at + d, values.stride, steps, sums + d, latent, joining);
  for (; d < latent; d += LANES) {
    typename Math::Unit edge[TILE_TOKENS * LANES] = {};
    const size_t bytes = size_t(latent - d < LANES ? latent - d : LANES) * sizeof(float);
    for (int64_t k = 0; k < steps; k++) std::memcpy(edge + k * LANES, values.at + k * values.stride + d, bytes);
    float whole[M * LANES] = {};
    for (int m = 0; m < M; m++) std::memcpy(whole + m * LANES, sums + m * latent + d, bytes);
    tile_product<Math, M, 1>(weights, 1, LANES, edge, LANES, steps, whole, LANES, joining);
    for (int m = 0; m < M; m++) std::memcpy(sums + m * latent + d, whole + m * LANES, bytes);
  }
}

// sums [16][latent], joined with softmax weights [steps][16], transposed, times values
template <class Math>
void weigh_values(const typename Math::Unit* weights, int64_t heads, const Tokens<typename Math::Unit>& values,
                  int64_t steps, int64_t latent, float* sums, const Joining& joining) {
  constexpr int MANY = TILE_REGISTERS >= 16 ? 8 : 6;
  const auto from = [&](int64_t head) {
    return joining.keep ? Joining{joining.keep + head, joining.take + head} : Joining{};
  };
  int64_t head = 0;
  for (; head + MANY <= LANES && head < heads; head += MANY)
    weigh_heads<Math, MANY>(weights + head, values, steps, latent, sums + head * latent, from(head));
  for (; head < heads; head += 4)
    weigh_heads<Math, 4>(weights + head, values, steps, latent, sums + head * latent, from(head));
}

}  // namespace
}  // namespace moonshard
