// The inner loops of every product: a tile of up to MAX_TILE_TOKENS tokens times R blocks of 16 weight rows.
//
// Weights are stored in blocks of 16 rows, one row per lane; the loop takes their columns in steps. Tokens are packed
// step by step, tokens innermost, so that a step reads contiguous memory. For every R and M each (token, row) has exactly
// one accumulator that takes the columns in order, so a result does not depend on the batch.
//
//   kind        a step is    weights of a block and step   tokens of a step, times M        arithmetic
//   PlainF32    1 column     16 float32, 64 bytes          1 float32                        float32 FMA
//   DenseF32    2 columns    16 pairs of bf16, 64 bytes    2 float32                        float32 FMA
//   DenseBf16   2 columns    the same                      1 word of two bf16               bf16 dot product
//   Int4F32     32 columns   256 bytes + 16 scales         32 scaled float32, 1 correction  float32 FMA
//   Int4Bf16    32 columns   the same                      16 words of two bf16             bf16 dot product
//
// The INT4 kinds are in int4_tiles.h.
#pragma once
#include "simd.h"

namespace moonshard {
namespace {

constexpr int64_t ROWS = 16;       // weight rows of a block
constexpr int64_t PREFETCH = 1536; // bytes ahead in each block's stream: about one memory latency

struct Matrix {
  const uint8_t* words = nullptr;    // [blocks, steps, WORD_BYTES of the kind]
  const uint16_t* scales = nullptr;  // [blocks, steps, 16], INT4 only
  int64_t steps = 0;
};

inline void prefetch(const uint8_t* p) { __builtin_prefetch(p + PREFETCH, 0, 3); }

template <int R, int M>
struct Sums {
  F16 at[M][R];

  void load_or_clear(const float* c, int64_t row_stride, bool resume) {
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) at[m][r] = resume ? load(c + m * row_stride + r * ROWS) : zeros();
  }
  void save(float* c, int64_t row_stride) const {
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) store(c + m * row_stride + r * ROWS, at[m][r]);
  }
};

// sums += x weight for M tokens and R blocks. With sixteen registers these hold the sums, one block's weights and one
// token; with thirty-two, all weights stay and each token is broadcast once. `tight`: a mask needs one more register.
template <int R, int M, bool tight = true, class Weight>
inline void accumulate(F16 (&sums)[M][R], const float* x, const Weight& weight) {
  if constexpr (TILE_REGISTERS < 16) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const F16 w = weight(r);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        sums[m][r] = fma(splat(x[m]), w, sums[m][r]);
        // Keeps the compiler from loading the next token early, because that would spill a sum.
        if (tight && M * R == TILE_REGISTERS) pin(sums[m][r], x);
      }
    }
  } else {
    F16 w[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) w[r] = weight(r);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) sums[m][r] = fma(splat(x[m]), w[r], sums[m][r]);
  }
}

struct PlainF32 {
  using Unit = float;
  static constexpr bool WORDS = false;  // whether a unit is two columns in the layout of memory
  static constexpr int64_t COLUMNS = 1, UNITS = 1, WORD_BYTES = 64;
  static constexpr int64_t PASS_STEPS = 256;

  template <int R, int M>
  static void tile(const Matrix& w, int64_t block, int64_t step, int64_t end, const float* x, float* c,
                   int64_t row_stride, bool resume) {
    Sums<R, M> sums;
    sums.load_or_clear(c, row_stride, resume);
    const uint8_t* from = w.words + (block * w.steps + step) * WORD_BYTES;
    for (; step < end; step++, from += WORD_BYTES, x += M)
      accumulate<R, M, false>(sums.at, x, [&](int r) {
        return load(reinterpret_cast<const float*>(from + r * w.steps * WORD_BYTES));
      });
    sums.save(c, row_stride);
  }

  static void pack(const float* value, float* x, int64_t, int64_t m) { x[m] = *value; }
};

struct DenseF32 {
  using Unit = float;
  static constexpr bool WORDS = false;
  static constexpr int64_t COLUMNS = 2, UNITS = 2, WORD_BYTES = 64;
  static constexpr int64_t PASS_STEPS = 256;  // 16 KiB of a block, half of the first-level cache

  template <int R, int M>
  static void tile(const Matrix& w, int64_t block, int64_t step, int64_t end, const float* x, float* c,
                   int64_t row_stride, bool resume) {
    Sums<R, M> sums;
    sums.load_or_clear(c, row_stride, resume);
    const uint8_t* from = w.words + (block * w.steps + step) * WORD_BYTES;
    for (; step < end; step++, from += WORD_BYTES, x += UNITS * M) {
      if (M < MAX_TILE_TOKENS)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) prefetch(from + r * w.steps * WORD_BYTES);
      const auto pair = [&](int r) { return load_words(from + r * w.steps * WORD_BYTES); };
      accumulate<R, M>(sums.at, x, [&](int r) { return low_half(pair(r)); });
      accumulate<R, M>(sums.at, x + M, [&](int r) { return high_half(pair(r)); });
    }
    sums.save(c, row_stride);
  }

  // Packs one step of token m of M. Values past the last column are zero.
  static void pack(const float* value, float* x, int64_t M, int64_t m) {
    x[m] = value[0];
    x[M + m] = value[1];
  }
};

#ifdef MOONSHARD_BF16_DOT
struct DenseBf16 {
  using Unit = uint32_t;
  static constexpr bool WORDS = true;
  static constexpr int64_t COLUMNS = 2, UNITS = 1, WORD_BYTES = 64;
  static constexpr int64_t PASS_STEPS = 256;

  template <int R, int M>
  static void tile(const Matrix& w, int64_t block, int64_t step, int64_t end, const uint32_t* x, float* c,
                   int64_t row_stride, bool resume) {
    Sums<R, M> sums;
    sums.load_or_clear(c, row_stride, resume);
    const uint8_t* from = w.words + (block * w.steps + step) * WORD_BYTES;
    for (; step < end; step++, from += WORD_BYTES, x += M) {
      W16 pair[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const uint8_t* at = from + r * w.steps * WORD_BYTES;
        if (M < MAX_TILE_TOKENS) prefetch(at);
        pair[r] = load_words(at);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; m++)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sums.at[m][r] = bf16_dot(sums.at[m][r], pair[r], x[m]);
    }
    sums.save(c, row_stride);
  }
};

#else
using DenseBf16 = DenseF32;  // no bf16 arithmetic: widened to float32, which is exact
#endif

}  // namespace
}  // namespace moonshard
