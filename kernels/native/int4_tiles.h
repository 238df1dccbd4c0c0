// Tiles (tiles.h) for INT4 weights: groups of 32 columns with one bf16 scale per row.
//
// Word l (32 bits) of vector v = 0..3 of a group belongs to row l and holds columns 8 v .. 8 v + 7 as nibbles w + 8: the
// even columns in the low half, lowest first, the odd columns in the high half. The sum of a group is computed unscaled,
// then added times its scale. The scales of a group are 16 bf16, one per row.
#pragma once
#include "tiles.h"

namespace moonshard {
namespace {

constexpr int64_t GROUP = 32;  // columns that share a scale

struct Int4F32 {
  using Unit = float;
  static constexpr bool WORDS = false;
  static constexpr int64_t COLUMNS = GROUP, UNITS = GROUP + 1, WORD_BYTES = 256;
  static constexpr int64_t PASS_STEPS = 32;

  // A nibble is used without a shift, as nibble * 16^place, and the token's value is packed times 16^-place. Instead of
  // subtracting 8 from every nibble, each group starts at -8 times the sum of the token's values.
  template <int R, int M>
  static void tile(const Matrix& w, int64_t block, int64_t step, int64_t end, const float* x, float* c,
                   int64_t row_stride, bool resume) {
    Sums<R, M> sums;
    sums.load_or_clear(c, row_stride, resume);
    const uint8_t* from = w.words + (block * w.steps + step) * WORD_BYTES;
    const uint16_t* scales = w.scales + (block * w.steps + step) * ROWS;
    for (; step < end; step++, from += WORD_BYTES, scales += ROWS, x += UNITS * M) {
      F16 part[M][R];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) part[m][r] = splat(x[GROUP * M + m]);
#pragma GCC unroll 16
      for (int v = 0; v < 4; v++) {
        W16 words[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const uint8_t* at = from + r * w.steps * WORD_BYTES + v * 64;
          if (M < MAX_TILE_TOKENS) prefetch(at);
          words[r] = load_words(at);
        }
        const float* xv = x + v * 8 * M;
        column<0, R, M>(words, xv, part);
        column<4, R, M>(words, xv + M, part);
        column<1, R, M>(words, xv + 2 * M, part);
        column<5, R, M>(words, xv + 3 * M, part);
        column<2, R, M>(words, xv + 4 * M, part);
        column<6, R, M>(words, xv + 5 * M, part);
        column<3, R, M>(words, xv + 6 * M, part);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) words[r] = shift_right_4(words[r]);
        column<6, R, M>(words, xv + 7 * M, part);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const F16 scale = load(scales + r * w.steps * ROWS);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) sums.at[m][r] = fma(part[m][r], scale, sums.at[m][r]);
      }
    }
    sums.save(c, row_stride);
  }

  template <int place, int R, int M>
  static void column(const W16 (&words)[R], const float* x, F16 (&part)[M][R]) {
    accumulate<R, M>(part, x, [&](int r) { return nibble<place>(words[r]); });
  }

  static void pack(const float* value, float* x, int64_t M, int64_t m) {
    constexpr float one = 1.0f, s1 = one / 16, s2 = s1 / 16, s3 = s2 / 16, s4 = s3 / 16, s5 = s4 / 16, s6 = s5 / 16;
    constexpr float down[8] = {one, s4, s1, s5, s2, s6, s3, s6};
    for (int64_t i = 0; i < GROUP; i++) x[i * M + m] = value[i] * down[i % 8];
    x[GROUP * M + m] = -8.0f * sum(add(load(value), load(value + 16)));
  }
};

#ifdef MOONSHARD_BF16_DOT
struct Int4Bf16 {
  using Unit = uint32_t;
  static constexpr bool WORDS = true;
  static constexpr int64_t COLUMNS = GROUP, UNITS = GROUP / 2, WORD_BYTES = 256;
  static constexpr int64_t PASS_STEPS = 32;

  // bf16(i % 16 - 8). The look-up reads five bits; because the table repeats after 16, the fifth need not be masked.
  static W16 table() {
    uint16_t entry[32];
    for (int i = 0; i < 32; i++) entry[i] = to_bf16(float(i % 16 - 8));
    return load_words(entry);
  }

  template <int R, int M>
  static void tile(const Matrix& w, int64_t block, int64_t step, int64_t end, const uint32_t* x, float* c,
                   int64_t row_stride, bool resume) {
    Sums<R, M> sums;
    sums.load_or_clear(c, row_stride, resume);
    const W16 values = table();
    const uint8_t* from = w.words + (block * w.steps + step) * WORD_BYTES;
    const uint16_t* scales = w.scales + (block * w.steps + step) * ROWS;
    for (; step < end; step++, from += WORD_BYTES, scales += ROWS, x += UNITS * M) {
      F16 part[M][R];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) part[m][r] = zeros();
#pragma GCC unroll 16
      for (int v = 0; v < 4; v++) {
        W16 words[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const uint8_t* at = from + r * w.steps * WORD_BYTES + v * 64;
          if (M < MAX_TILE_TOKENS) prefetch(at);
          words[r] = load_words(at);
        }
        pair<0, R, M>(words, values, x + (v * 4 + 0) * M, part);
        pair<1, R, M>(words, values, x + (v * 4 + 1) * M, part);
        pair<2, R, M>(words, values, x + (v * 4 + 2) * M, part);
        pair<3, R, M>(words, values, x + (v * 4 + 3) * M, part);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const F16 scale = load(scales + r * w.steps * ROWS);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) sums.at[m][r] = fma(part[m][r], scale, sums.at[m][r]);
      }
    }
    sums.save(c, row_stride);
  }

  template <int j, int R, int M>
  static void pair(const W16* words, W16 values, const uint32_t* x, F16 (*part)[R]) {
    W16 weight[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) weight[r] = look_up(shift_right_16bit(words[r], 4 * j), values);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) part[m][r] = bf16_dot(part[m][r], weight[r], x[m]);
  }

  static void pack(const float* value, uint32_t* x, int64_t M, int64_t m) {
    uint16_t half[GROUP];
    store(half, load(value));
    store(half + 16, load(value + 16));
    for (int64_t i = 0; i < UNITS; i++) std::memcpy(x + i * M + m, half + 2 * i, 4);
  }
};
#else
using Int4Bf16 = Int4F32;
#endif

}  // namespace
}  // namespace moonshard
