// Decode attention on the tile unit: all heads of a row share the latents, so both products multiply tiles.
//
//   scores [positions, heads]  tokens: keys as they are in the cache; weights: queries
//   sums [heads, latents]      tokens: softmax weights, transposed; weights: latents, in pairs of positions
#pragma once
#include "tokens.h"
#include "../attention_math.h"

namespace moonshard {
namespace {

struct TransposedWeights;

// Swaps rows and columns of 16 x 16 words.
inline void transpose(W16 (&rows)[16]) {
  __m512i pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i].all, rows[i + 1].all);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i].all, rows[i + 1].all);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  // Quarter q of quads[4 i + j] has rows 4 i .. 4 i + 3 of column 4 q + j.
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m512i even0 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
    const __m512i even1 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
    const __m512i odd0 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xDD);
    const __m512i odd1 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xDD);
    rows[j].all = _mm512_shuffle_i32x4(even0, even1, 0x88);
    rows[8 + j].all = _mm512_shuffle_i32x4(even0, even1, 0xDD);
    rows[4 + j].all = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    rows[12 + j].all = _mm512_shuffle_i32x4(odd0, odd1, 0xDD);
  }
}

struct TileMath : Bf16Math {
  // Rounded up to whole steps, because a tile of positions that is read in place has no part of a step.
  static int64_t units(int64_t count) { return up_to(count, STEP) / 2; }
  static bool as_cached(int64_t tokens, int64_t width, int64_t stride) {
    return tokens % TILE_ROWS == 0 && width % STEP == 0 && stride % 2 == 0;
  }

  static void score(const Tokens<uint32_t>& keys, int64_t units, int64_t tokens, const uint32_t* queries,
                    int64_t lanes, float* scores) {
    TileUnit unit;
    unit.configure(TILE_ROWS);
    for (int64_t lane = 0; lane < lanes; lane += 2 * LANES)
      for (int64_t t = 0; t < tokens; t += 2 * TILE_ROWS) {
        const bool two_lanes = lane + LANES < lanes, two_tiles = t + TILE_ROWS < tokens;
        const auto block = two_tiles ? (two_lanes ? score_block<2, 2> : score_block<2, 1>)
                                     : (two_lanes ? score_block<1, 2> : score_block<1, 1>);
        block(keys, t, units, queries + lane, lanes, scores + t * lanes + lane, lane == 0);
      }
  }

  static void weigh(const float* weights, const Tokens<uint32_t>& keys, int64_t tokens, int64_t latent, int64_t heads,
                    int64_t lanes, float* sums, int64_t wide, const Joining& joining) {
    const int64_t words = units(tokens);
    uint32_t* const packed = scratch<TransposedWeights, uint32_t>(lanes * words);
    uint32_t* const values = scratch<TileValues, uint32_t>(words * wide);
    for (int64_t head = 0; head < heads; head += LANES)
      transpose_weights(weights + head, tokens, lanes, words, packed + head * words);
    pack_values(keys, tokens, latent, words, values);
    TileUnit unit;
    unit.configure(TILE_ROWS);
    for (int64_t d = 0; d < wide; d += CHUNK)
      for (int64_t head = 0; head < heads; head += 2 * LANES) {
        const auto block = head + LANES < heads ? weigh_block<2> : weigh_block<1>;
        block(packed + head * words, values + d * words, words, sums + head * wide + d, wide, joining.from(head));
      }
  }

 private:
  // Multiplies P tiles of positions, from t on, by G tiles of heads.
  template <int P, int G>
  static void score_block(const Tokens<uint32_t>& keys, int64_t t, int64_t units, const uint32_t* queries,
                          int64_t lanes, float* scores, bool fetch) {
    const int64_t key_bytes = keys.stride * 4, lane_bytes = lanes * 4;
    tile_zero<4>();
    if constexpr (G > 1) tile_zero<5>();
    if constexpr (P > 1) tile_zero<6>();
    if constexpr (P > 1 && G > 1) tile_zero<7>();
    for (int64_t k = 0; k < units; k += STEP_WORDS) {
      if (fetch && keys.ahead)
        for (int64_t m = 0; m < P * TILE_ROWS; m++) __builtin_prefetch(keys.ahead + (t + m) * keys.stride + k, 0, 2);
      tile_load_rows<0>(keys.at + t * keys.stride + k, key_bytes);
      if constexpr (P > 1) tile_load_rows<1>(keys.at + (t + TILE_ROWS) * keys.stride + k, key_bytes);
      tile_load_rows<2>(queries + k * lanes, lane_bytes);
      if constexpr (G > 1) tile_load_rows<3>(queries + k * lanes + LANES, lane_bytes);
      tile_dot<4, 0, 2>();
      if constexpr (G > 1) tile_dot<5, 0, 3>();
      if constexpr (P > 1) tile_dot<6, 1, 2>();
      if constexpr (P > 1 && G > 1) tile_dot<7, 1, 3>();
    }
    tile_store_rows<4>(scores, lane_bytes);
    if constexpr (G > 1) tile_store_rows<5>(scores + LANES, lane_bytes);
    if constexpr (P > 1) tile_store_rows<6>(scores + TILE_ROWS * lanes, lane_bytes);
    if constexpr (P > 1 && G > 1) tile_store_rows<7>(scores + TILE_ROWS * lanes + LANES, lane_bytes);
  }

  // Sixteen heads: weights [tokens][lanes] -> [words / 16][16 heads][16 pairs of positions], padded with zeros.
  static void transpose_weights(const float* weights, int64_t tokens, int64_t lanes, int64_t words, uint32_t* out) {
    for (int64_t first = 0; first < words; first += STEP_WORDS, out += STEP_WORDS * LANES) {
      W16 rows[16];
      for (int64_t i = 0; i < STEP_WORDS; i++) {
        const int64_t t = 2 * (first + i);
        rows[i] = upper_halves(t < tokens ? load(weights + t * lanes) : zeros(),
                               t + 1 < tokens ? load(weights + (t + 1) * lanes) : zeros());
      }
      transpose(rows);
      for (int64_t head = 0; head < LANES; head++) store_words(out + head * STEP_WORDS, rows[head]);
    }
  }

  // G times sixteen heads, CHUNK latents.
  template <int G>
  static void weigh_block(const uint32_t* weights, const uint32_t* values, int64_t words, float* sums, int64_t wide,
                          const Joining& joining) {
    static_assert(CHUNK == 2 * LANES);
    tile_zero<4>(), tile_zero<5>();
    if constexpr (G > 1) tile_zero<6>(), tile_zero<7>();
    for (int64_t k = 0; k < words; k += STEP_WORDS) {
      tile_load_rows<0>(weights + k * LANES, TILE_ROW);
      if constexpr (G > 1) tile_load_rows<1>(weights + (words + k) * LANES, TILE_ROW);
      tile_load_rows<2>(values + k * CHUNK, CHUNK * 4);
      tile_load_rows<3>(values + k * CHUNK + LANES, CHUNK * 4);
      tile_dot<4, 0, 2>(), tile_dot<5, 0, 3>();
      if constexpr (G > 1) tile_dot<6, 1, 2>(), tile_dot<7, 1, 3>();
    }
    float fresh[G * LANES * CHUNK];
    tile_store_rows<4>(fresh, CHUNK * 4), tile_store_rows<5>(fresh + LANES, CHUNK * 4);
    if constexpr (G > 1)
      tile_store_rows<6>(fresh + LANES * CHUNK, CHUNK * 4), tile_store_rows<7>(fresh + LANES * CHUNK + LANES, CHUNK * 4);
    for (int64_t head = 0; head < G * LANES; head++)
      for (int64_t d = 0; d < CHUNK; d += LANES)
        joining.put(sums + head * wide + d, load(fresh + head * CHUNK + d), head);
  }
};

}  // namespace
}  // namespace moonshard
