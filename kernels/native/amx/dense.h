// bf16 weights on the tile unit: linears, and the scores and values of attention.
//
// A packed block of 16 rows (linear.cpp: pairs of columns, one row per lane) already is a sequence of weight tiles, one
// KiB per 32 columns. Sums stay in four tiles, 2 x 2 or 1 x 4 (tokens x blocks), and take the columns in order, so each
// (token, row) has one accumulator with every tiling. The unit adds 32 columns as two chains of fused multiply-adds from
// zero, one of the even and one of the odd columns, in the same way for every row.
#pragma once
#include "tokens.h"

namespace moonshard {
namespace {

constexpr int64_t AHEAD_BYTES = 2048;  // prefetched in each block's stream

// Multiplies T tiles of tokens by R blocks of rows over `steps` steps. Tiles are `x_apart` bytes apart, blocks `w_apart`.
// c  [T * height, R * 16], rows row_bytes apart; with `resume` the products are added to it
template <int T, int R, bool PREFETCH>
void dense_tile(const uint8_t* x, int64_t x_apart, int64_t step_bytes, const uint8_t* w, int64_t w_apart, int64_t steps,
                uint8_t* c, int64_t tile_bytes, int64_t row_bytes, bool resume) {
  static_assert(T * R <= 4 && T <= 2);
  const auto for_sums = [&](const auto& visit) __attribute__((always_inline)) {
    const auto at = [&]<int i>(std::integral_constant<int, i>) __attribute__((always_inline)) {
      if constexpr (i < T * R) visit.template operator()<4 + i>(c + i / R * tile_bytes + i % R * TILE_ROW);
    };
    at(std::integral_constant<int, 0>()), at(std::integral_constant<int, 1>());
    at(std::integral_constant<int, 2>()), at(std::integral_constant<int, 3>());
  };
  if (resume)
    for_sums([&]<int C>(uint8_t* at) { tile_load_rows<C>(at, row_bytes); });
  else
    for_sums([&]<int C>(uint8_t*) { tile_zero<C>(); });
  const auto block = [&]<int r>(const uint8_t* from, std::integral_constant<int, r>) __attribute__((always_inline)) {
    if constexpr (r < R) {
      constexpr int B = 2 + r % 2;
      from += r * w_apart;
      if (PREFETCH)
#pragma GCC unroll 16
        for (int line = 0; line < 16; line++) __builtin_prefetch(from + AHEAD_BYTES + line * 64, 0, 3);
      tile_load_rows<B>(from, TILE_ROW);
      tile_dot<4 + r, 0, B>();
      if constexpr (T > 1) tile_dot<4 + R + r, 1, B>();
    }
  };
  for (int64_t s = 0; s < steps; s++, x += step_bytes, w += TILE_BYTES) {
    tile_load_rows<0>(x, TILE_ROW);
    if constexpr (T > 1) tile_load_rows<1>(x + x_apart, TILE_ROW);
    block(w, std::integral_constant<int, 0>()), block(w, std::integral_constant<int, 1>());
    block(w, std::integral_constant<int, 2>()), block(w, std::integral_constant<int, 3>());
  }
  for_sums([&]<int C>(uint8_t* at) { tile_store_rows<C>(at, row_bytes); });
}

struct DenseTiles : TileProduct {
  using Weights = DenseBf16;
  static constexpr int64_t TASK_TILES = 32;  // 512 tokens and a pass: half a MiB, in the second-level cache
  static constexpr int64_t PASS_STEPS = 16;  // 2 x 16 KiB of weights stay in the first-level cache

  // Blocks of a task: enough to make reading the tokens again for each task cheap, few enough to occupy all threads.
  static int64_t task_blocks(int64_t all_blocks, int64_t tiles, int64_t threads) {
    return std::clamp<int64_t>(all_blocks / (threads * 4) / 2 * 2, 4, tiles > 2 ? 16 : 4);
  }

  static void multiply(const Matrix& w, int64_t block, int64_t blocks, const Unit* x, const TokenTiles& tiling,
                       int64_t first, int64_t last, float* c, int64_t row_stride) {
    multiply_steps(w, block, blocks, 0, w.steps, x + tiling.first_row(first) * row_units(2 * w.steps), tiling.height,
                   last - first, c, row_stride, false);
  }

  static void add(const Matrix& w, int64_t block, int64_t blocks, int64_t step, int64_t steps, const Unit* x,
                  const TokenTiles& tiling, float* c, int64_t row_stride) {
    multiply_steps(w, block, blocks, step, steps, x, tiling.height, tiling.tiles, c, row_stride, true);
  }

 private:
  // Multiplies `count` tiles of tokens, packed with only the columns of these steps. A step of the matrix is a pair of
  // columns.
  static void multiply_steps(const Matrix& w, int64_t block, int64_t blocks, int64_t first_step, int64_t num_steps,
                             const Unit* tokens, int64_t height, int64_t count, float* c, int64_t row_stride,
                             bool resume) {
    const int64_t whole = num_steps / STEP_WORDS, rest = num_steps % STEP_WORDS;
    const int64_t step_bytes = height * TILE_ROW, x_apart = (whole + (rest > 0)) * step_bytes;
    const int64_t w_apart = w.steps * TILE_ROW, row_bytes = row_stride * 4, tile_bytes = height * row_bytes;
    const uint8_t* const words = w.words + block * w_apart + first_step * TILE_ROW;
    const uint8_t* const x = reinterpret_cast<const uint8_t*>(tokens);
    uint8_t* const sums = reinterpret_cast<uint8_t*>(c);
    TileUnit unit;
    unit.configure(height);
    const int64_t pass = count > 2 ? PASS_STEPS : std::max<int64_t>(whole, 1);
    const int64_t widest = count > 1 ? 2 : 4;
    for (int64_t step = 0; step < std::max<int64_t>(whole, 1); step += pass) {
      const int64_t steps = std::min(pass, whole - step);
      for (int64_t b = 0; b < blocks;) {
        const int64_t together = b + widest <= blocks ? widest : 1;
        for (int64_t t = 0; t < count;) {
          const int64_t pair = t + 2 <= count ? 2 : 1;
          const auto tile = pair == 2 ? (together == 2 ? dense_tile<2, 2, false> : dense_tile<2, 1, false>)
                            : together == 4 ? dense_tile<1, 4, true>
                            : together == 2 ? dense_tile<1, 2, false>
                                            : dense_tile<1, 1, false>;
          tile(x + t * x_apart + step * step_bytes, x_apart, step_bytes, words + b * w_apart + step * TILE_BYTES,
               w_apart, steps, sums + t * tile_bytes + b * TILE_ROW, tile_bytes, row_bytes, resume || step > 0);
          t += pair;
        }
        b += together;
      }
    }
    if (rest == 0) return;
    unit.configure(height, rest);
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t t = 0; t < count; t++)
        dense_tile<1, 1, false>(x + t * x_apart + whole * step_bytes, 0, 0, words + b * w_apart + whole * TILE_BYTES,
                                0, 1, sums + t * tile_bytes + b * TILE_ROW, 0, row_bytes, true);
  }
};

}  // namespace
}  // namespace moonshard
