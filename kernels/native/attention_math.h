// Number formats of decode attention: float32 everywhere, or pairs of bf16 on CPUs that multiply them.
//
// Lanes are heads, sixteen to a register. Every (token, head) score and every (head, latent) sum has one accumulator
// that takes its terms in order, so a result depends neither on the blocking nor on the other heads.
#pragma once
#include "parallel.h"
#include "simd.h"

namespace moonshard {
namespace {

constexpr int64_t TILE_TOKENS = 64;
constexpr int64_t LANES = 16;
constexpr int64_t K26_WIDTH = 512 + 64;  // numbers of a cached token in every released model
constexpr int WIDE = TILE_REGISTERS >= 16 ? 2 : 1;  // registers of latents, or of heads, that a product takes at once
constexpr int64_t CHUNK = WIDE * LANES;             // latents side by side in memory

inline int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Tokens of a tile in the layout of the products.
template <class Unit>
struct Tokens {
  const Unit* at;
  int64_t stride;     // units from one to the next
  const Unit* ahead;  // the next tile, to be prefetched meanwhile, or nullptr
};

// How a tile's result joins the sums of its row: as the first one, or old * keep + new * take for each head.
struct Joining {
  const float* keep = nullptr;
  const float* take = nullptr;

  Joining from(int64_t head) const { return keep ? Joining{keep + head, take + head} : Joining{}; }
  void put(float* to, F16 fresh, int64_t head) const {
    if (keep)
      store(to, fma(load(to), splat(keep[head]), mul(fresh, splat(take[head]))));
    else
      store(to, fresh);
  }
};

struct TileValues;
struct TileWeights;

// out[m][r] of M tokens and R times 16 lanes: sum over k of x[m * x_token + k * x_step] * w[k * w_step + r * 16 + lane].
// X_TOKEN is x_token as a constant, or 0 for any: with a constant, sixteen rows need one address register, not sixteen.
template <class Math, int M, int R, int64_t X_TOKEN = 0>
void tile_product(const typename Math::Unit* x, int64_t x_token, int64_t x_step, const typename Math::Unit* w,
                  int64_t w_step, int64_t steps, float* out, int64_t out_token, const Joining& joining = {},
                  const typename Math::Unit* ahead = nullptr) {
  constexpr int64_t LINE = 64 / sizeof(*x);  // units of a line of the cache
  if constexpr (X_TOKEN != 0) x_token = X_TOKEN;
  F16 sums[M][R];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sums[m][r] = zeros();
  for (int64_t k = 0; k < steps; k++, x += x_step, w += w_step) {
    // One line of the cache a step: the hardware prefetcher cannot follow sixteen rows at once.
    if (X_TOKEN != 0 && k / M * LINE < steps) __builtin_prefetch(ahead + k % M * x_token + k / M * LINE, 0, 2);
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

// The part that both formats share. `Math` defines a unit of memory and its products.
template <class Math>
struct VectorMath {
  // scores [tokens][lanes] = keys times queries [units][lanes]
  template <class Unit>
  static void score(const Tokens<Unit>& keys, int64_t units, int64_t tokens, const Unit* queries, int64_t lanes,
                    float* scores) {
    int64_t lane = 0;
    for (; WIDE > 1 && lane + CHUNK <= lanes; lane += CHUNK)
      score_lanes<WIDE, 8>(keys, units, tokens, queries + lane, lanes, scores + lane);
    for (; lane < lanes; lane += LANES)
      score_lanes<1, WIDE == 1 ? MAX_TILE_TOKENS : 16>(keys, units, tokens, queries + lane, lanes, scores + lane);
  }

  // sums [heads][wide] joined with softmax weights [tokens][lanes], transposed, times the tokens' latents
  template <class Unit>
  static void weigh(const float* weights, const Tokens<Unit>& keys, int64_t tokens, int64_t latent, int64_t heads,
                    int64_t lanes, float* sums, int64_t wide, const Joining& joining) {
    constexpr int MANY = WIDE == 1 ? 6 : 8;
    const int64_t steps = Math::units(tokens);
    const Unit* const packed = Math::pack_weights(weights, tokens, lanes, scratch<TileWeights, Unit>(steps * lanes));
    Unit* const values = scratch<TileValues, Unit>(steps * wide);
    Math::pack_values(keys, tokens, latent, steps, values);
    for (int64_t d = 0; d < wide; d += CHUNK) {
      const auto heads_at = [&]<int M>(int64_t head, std::integral_constant<int, M>) {
        tile_product<Math, M, WIDE>(packed + head, 1, lanes, values + d * steps, CHUNK, steps, sums + head * wide + d,
                                    wide, joining.from(head));
      };
      int64_t head = 0;
      for (; head + MANY <= lanes && head < heads; head += MANY) heads_at(head, std::integral_constant<int, MANY>());
      for (; head < heads; head += 2) heads_at(head, std::integral_constant<int, 2>());
    }
  }

 private:
  template <int R, int MANY, class Unit>
  static void score_lanes(const Tokens<Unit>& keys, int64_t units, int64_t tokens, const Unit* queries, int64_t lanes,
                          float* scores) {
    constexpr int64_t usual = K26_WIDTH * sizeof(typename Math::Cached) / sizeof(Unit);
    const auto tokens_at = [&]<int M>(int64_t t, std::integral_constant<int, M>) {
      const bool fetch = keys.ahead && keys.stride == usual;
      const auto product = fetch ? tile_product<Math, M, R, usual> : tile_product<Math, M, R>;
      product(keys.at + t * keys.stride, keys.stride, 1, queries, lanes, units, scores + t * lanes, lanes, {},
              fetch ? keys.ahead + t * keys.stride : nullptr);
    };
    int64_t t = 0;
    for (; t + MANY <= tokens; t += MANY) tokens_at(t, std::integral_constant<int, MANY>());
    for (; t + 4 <= tokens; t += 4) tokens_at(t, std::integral_constant<int, 4>());
    for (; t < tokens; t++) tokens_at(t, std::integral_constant<int, 1>());
  }
};

// float32, from a cache of either dtype.
template <class T>
struct FloatMath : VectorMath<FloatMath<T>> {
  using Cached = T;
  using Unit = float;
  using Lanes = F16;

  static int64_t units(int64_t count) { return count; }
  static bool as_cached(int64_t, int64_t, int64_t) { return sizeof(T) == sizeof(Unit); }
  static Lanes load_lanes(const float* w) { return load(w); }
  static F16 multiply_add(F16 sum, F16 w, float x) { return fma(splat(x), w, sum); }
  static F16 rounded(F16 weight) { return weight; }
  // Puts numbers [first, first + count) of one head's query into its lane.
  static void put(const T* from, int64_t first, int64_t count, int64_t lane, int64_t lanes, float* queries) {
    for (int64_t d = 0; d < count; d++) queries[(first + d) * lanes + lane] = widen(from[d]);
  }

  static void read(const T* from, int64_t width, float* to) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) store(to + d, load(from + d));
    for (; d < width; d++) to[d] = widen(from[d]);
  }
  // Softmax weights [tokens][lanes] are used unchanged.
  static const float* pack_weights(const float* weights, int64_t, int64_t, float*) { return weights; }
  // Packs tokens to [latents / CHUNK][tokens][CHUNK], contiguous for each product; zeros past the last latent.
  static void pack_values(const Tokens<float>& keys, int64_t tokens, int64_t latent, int64_t, float* out) {
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t d = 0; d < latent; d += CHUNK) {
        float* to = out + d * tokens + t * CHUNK;
        const int64_t here = latent - d < CHUNK ? latent - d : CHUNK;
        if (here < CHUNK) std::memset(to, 0, CHUNK * sizeof(float));
        std::memcpy(to, keys.at + t * keys.stride + d, size_t(here) * sizeof(float));
      }
  }
};

#ifdef MOONSHARD_BF16_DOT
// Words of two bf16 that are neighbours in the summed dimension: two columns of a key, two tokens of the values. The
// softmax weights are rounded to bf16, and their sum is the sum of the rounded weights.
struct Bf16Math : VectorMath<Bf16Math> {
  using Cached = uint16_t;
  using Unit = uint32_t;
  using Lanes = W16;

  static int64_t units(int64_t count) { return (count + 1) / 2; }
  // Whether the products can read a tile of tokens in place; `stride` counts bf16 from one token to the next.
  static bool as_cached(int64_t, int64_t, int64_t stride) { return stride % 2 == 0; }
  static Lanes load_lanes(const uint32_t* w) { return load_words(w); }
  static F16 multiply_add(F16 sum, W16 w, uint32_t x) { return bf16_dot(sum, w, x); }
  static F16 rounded(F16 weight) {
    uint16_t half[LANES];
    store(half, weight);
    return load(half);
  }
  static void put(const uint16_t* from, int64_t first, int64_t count, int64_t lane, int64_t lanes, uint32_t* queries) {
    for (int64_t d = 0; d < count; d += 2) std::memcpy(queries + (first + d) / 2 * lanes + lane, from + d, 4);
  }
  static void read(const uint16_t* from, int64_t width, uint32_t* to) { std::memcpy(to, from, size_t(width) * 2); }

  // Weights are bf16 numbers in float32: the upper halves of two tokens' weights make a word.
  static const uint32_t* pack_weights(const float* weights, int64_t tokens, int64_t lanes, uint32_t* out) {
    const F16 none = zeros();
    for (int64_t t = 0; t < tokens; t += 2)
      for (int64_t lane = 0; lane < lanes; lane += LANES) {
        const float* from = weights + t * lanes + lane;
        store_words(out + t / 2 * lanes + lane, upper_halves(load(from), t + 1 < tokens ? load(from + lanes) : none));
      }
    return out;
  }

  // Packs tokens to [latents / CHUNK][steps][CHUNK], the two tokens of a step in one word; padded with zeros.
  static void pack_values(const Tokens<uint32_t>& keys, int64_t tokens, int64_t latent, int64_t steps, uint32_t* out) {
    for (int64_t t = 0; t < 2 * steps; t += 2)
      for (int64_t d = 0; d < latent; d += CHUNK) {
        const uint16_t* halves[2];
        uint16_t edge[2][CHUNK] = {};
        for (int64_t i = 0; i < 2; i++) {
          const uint16_t* from = reinterpret_cast<const uint16_t*>(keys.at + (t + i) * keys.stride) + d;
          const bool whole = t + i < tokens && d + CHUNK <= latent;
          if (!whole && t + i < tokens) std::memcpy(edge[i], from, size_t(latent - d) * 2);
          halves[i] = whole ? from : edge[i];
        }
        interleave(halves[0], halves[1], out + d * steps + t / 2 * CHUNK);
      }
  }
};
#endif

}  // namespace
}  // namespace moonshard
