// INT4 weights on the tile unit; each weight is exactly nibble times scale.
//
// One TDPBF16PS multiplies up to 16 tokens with 16 weight rows over 32 columns: exactly one group. Weights enter as
// bf16(nibble - 8), which is exact, so the unit gives the unscaled sum of a group. This is multiplied by the scales of its
// 16 rows and added to the running sums in vector registers. So every (token, row) has one accumulator that takes the
// groups in order and does not depend on the rest of the call:
//
//     sum = fma(even chain + odd chain of the group, scale, sum)
//
// The three stages of a group run a few groups apart, so that no stage waits for a store of the stage before:
//
//     widen     256 bytes of nibbles -> 1 KiB of bf16, the layout of a tile: 16 rows of (16 weight rows x 2 columns)
//     multiply  load tokens and weights, clear, TDPBF16PS, store `height` rows
//     add       one fused multiply-add per token, from memory
//
// The nibbles are stored as for AVX512 (int4_tiles.h): a shift and a look-up turn a vector into rows of the tile.
#pragma once
#include "tokens.h"
#include "../int4_tiles.h"

namespace moonshard {
namespace {

constexpr int SUM_TILES = 4;     // products in progress: a tile of sums is stored four products after it was computed
constexpr int BEHIND = 1;        // and added one product later
constexpr int PARTS = 4;         // stored tiles of unscaled sums
constexpr int AHEAD = 2;         // groups by which widening is ahead of multiplying
constexpr int RING_GROUPS = 4;   // with one tile of tokens: widened groups in memory
constexpr int64_t PANEL_GROUPS = 4;  // with several tiles of tokens: groups widened together

// Widens 256 bytes of nibbles to a tile of weights. Sixteen look-ups (one micro-operation each on ports 0 and 5) and the
// shifts (port 0) bound its speed; loading one byte further on replaces a shift by eight.
inline void widen_group(const uint8_t* from, W16 values, uint8_t* to) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; v++, from += 64, to += 4 * TILE_ROW) {
    const W16 low = load_words(from), high = load_words(from + 1);
    store_words(to, look_up(low, values));
    store_words(to + TILE_ROW, look_up(shift_right_16bit(low, 4), values));
    store_words(to + 2 * TILE_ROW, look_up(high, values));
    store_words(to + 3 * TILE_ROW, look_up(shift_right_16bit(high, 4), values));
  }
}

// One tile of at most 16 tokens takes all columns in one pass; its speed is bound by memory.
//
// M tokens times R blocks of 16 rows.
// x        packed tokens
// widened  memory for [RING_GROUPS, R, 1 KiB]
// c        [M, R * 16], row_stride apart
template <int M, int R>
void int4_tile(const Matrix& w, int64_t block, const uint8_t* x, uint8_t* widened, float* c, int64_t row_stride) {
  static_assert(RING_GROUPS > AHEAD && SUM_TILES % R == 0 && BEHIND < PARTS);
  alignas(64) float parts[PARTS][M * 16];
  const W16 values = Int4Bf16::table();
  const uint8_t* words[R];
  const uint16_t* scales[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    words[r] = w.words + (block + r) * w.steps * Int4Bf16::WORD_BYTES;
    scales[r] = w.scales + (block + r) * w.steps * ROWS;
  }
  Sums<R, M> sums;
  sums.load_or_clear(nullptr, 0, false);

  constexpr int64_t FETCH = 6144 / R;  // bytes ahead in each block's stream, half a microsecond
  const auto widen = [&](int64_t g) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const uint8_t* from = words[r] + g * Int4Bf16::WORD_BYTES;
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) __builtin_prefetch(from + FETCH + v * 64, 0, 3);
      __builtin_prefetch(scales[r] + g * ROWS + FETCH / 16, 0, 3);
      widen_group(from, values, widened + ((g & (RING_GROUPS - 1)) * R + r) * TILE_BYTES);
    }
  };
  // Products are numbered u = group * R + block. Step u loads tokens and weights; stores the sums of product u - 4 from
  // the tile that product u needs; clears this tile and multiplies into it; adds the stored sums of product u - 5.
  const int64_t groups = w.steps, products = groups * R;
  const auto step = [&]<int I>(int64_t u, std::integral_constant<int, I>) __attribute__((always_inline)) {
    constexpr int r = I % R, A = R == 4 ? 0 : I / R % 2, B = 2 + I % 2, C = 4 + I % SUM_TILES;
    const int64_t g = u / R;
    if (u < products) {
      if constexpr (r == 0) {
        if (g + AHEAD < groups) widen(g + AHEAD);
        tile_load<A, M>(x + g * M * TILE_ROW);
      }
      tile_load<B, 16>(widened + ((g & (RING_GROUPS - 1)) * R + r) * TILE_BYTES);
    }
    if (u >= SUM_TILES) tile_store<C, M>(parts[u & (PARTS - 1)]);
    if (u < products) {
      tile_zero<C>();
      tile_dot<C, A, B>();
    }
    if (u >= SUM_TILES + BEHIND) {
      constexpr int before = (I + 2 * SUM_TILES - BEHIND) % R;
      const F16 scale = load(scales[before] + (u - SUM_TILES - BEHIND) / R * ROWS);
      const float* part = parts[(u - BEHIND) & (PARTS - 1)];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) sums.at[m][before] = fma(load(part + m * 16), scale, sums.at[m][before]);
    }
  };
  for (int64_t g = 0; g < std::min<int64_t>(AHEAD, groups); g++) widen(g);
  int64_t u = 0;
  for (;;) {
    step(u, std::integral_constant<int, 0>());
    if (++u == products + SUM_TILES) break;
    step(u, std::integral_constant<int, 1>());
    if (++u == products + SUM_TILES) break;
    step(u, std::integral_constant<int, 2>());
    if (++u == products + SUM_TILES) break;
    step(u, std::integral_constant<int, 3>());
    if (++u == products + SUM_TILES) break;
  }
  // All sums are stored; the last BEHIND of them are still to be added.
  for (; u < products + SUM_TILES + BEHIND; u++) {
    if (u < SUM_TILES + BEHIND) continue;
    const int64_t done = u - SUM_TILES - BEHIND;
    const float* part = parts[(u - BEHIND) & (PARTS - 1)];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      if (done % R != r) continue;
      const F16 scale = load(scales[r] + done / R * ROWS);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) sums.at[m][r] = fma(load(part + m * 16), scale, sums.at[m][r]);
    }
  }
  sums.save(c, row_stride);
}

// Several tiles of M tokens each, times `blocks` blocks of 16 rows; the speed is bound by the tile unit and the store port.
//
// Columns and blocks are cut into panels of at most PANEL_GROUPS groups of one block. A panel is widened once for all
// tokens, while the panel before it is multiplied. The panels of all blocks with the same columns follow one another, so
// that these columns of the tokens stay in the first-level cache. The products of all panels form one pipeline as above;
// the sums of a tile are loaded from c and saved to c at the ends of its panels.
//
// x        packed tokens, `x_apart` bytes from tile to tile
// widened  memory for [2, PANEL_GROUPS, 1 KiB]
template <int M>
void int4_panels(const Matrix& w, int64_t block, int64_t blocks, const uint8_t* x, int64_t x_apart, int64_t tiles,
                 uint8_t* widened, float* c, int64_t row_stride) {
  constexpr int64_t pass = PANEL_GROUPS;
  alignas(64) float parts[PARTS][M * 16];
  const W16 values = Int4Bf16::table();
  const int64_t products = blocks * tiles * w.steps, first_block = block;

  struct Place {  // walks groups within a tile, tiles, blocks, passes
    int64_t first = 0, groups, block = 0, tile = 0, group = 0;
    explicit Place(int64_t n) : groups(n) {}
  };
  const auto advance = [&](Place& p) __attribute__((always_inline)) {
    if (++p.group < p.groups) return;
    p.group = 0;
    if (++p.tile < tiles) return;
    p.tile = 0;
    if (++p.block < blocks) return;
    p.block = 0;
    p.first += pass;
    p.groups = std::min(pass, w.steps - p.first);
  };
  const int64_t start = std::min(pass, w.steps);
  Place now(start), adding(start);
  const uint8_t* tokens = x;
  const uint8_t* weights = widened;

  // Widening runs a panel ahead: one group for every `tiles` products.
  int64_t wide_first = 0, wide_block = 0, wide_groups = start, wide_group = 0, wide_panel = 0, until = 0;
  const auto widen = [&]() __attribute__((always_inline)) {
    if (wide_group < wide_groups) {
      const int64_t at = (first_block + wide_block) * w.steps + wide_first + wide_group;
      const uint8_t* from = w.words + at * Int4Bf16::WORD_BYTES;
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) __builtin_prefetch(from + pass * Int4Bf16::WORD_BYTES + v * 64, 0, 3);
      __builtin_prefetch(w.scales + (at + pass) * ROWS, 0, 3);
      widen_group(from, values, widened + ((wide_panel & 1) * pass + wide_group++) * TILE_BYTES);
    }
  };
  const auto next_panel = [&]() __attribute__((always_inline)) {
    wide_group = 0, wide_panel++;
    if (++wide_block < blocks) return;
    wide_block = 0, wide_first += pass;
    wide_groups = std::max<int64_t>(0, std::min(pass, w.steps - wide_first));
  };
  while (wide_group < wide_groups) widen();
  next_panel();

  Sums<1, M> sums;
  const auto step = [&]<int I>(int64_t u, std::integral_constant<int, I>) __attribute__((always_inline)) {
    constexpr int A = I % 2, B = 2 + I % 2, C = 4 + I % SUM_TILES;
    if (u < products) {
      if (--until < 0) widen(), until = tiles - 1;
      tile_load<A, M>(tokens);
      tile_load<B, 16>(weights);
      tokens += M * TILE_ROW, weights += TILE_BYTES;
      advance(now);
      if (now.group == 0) {
        tokens = x + now.tile * x_apart + now.first * M * TILE_ROW;
        if (now.tile == 0) {
          while (wide_group < wide_groups) widen();  // panels may differ in length
          next_panel();
          until = 0;
        }
        weights = widened + ((wide_panel + 1) & 1) * pass * TILE_BYTES;
      }
    }
    if (u >= SUM_TILES) tile_store<C, M>(parts[u & (PARTS - 1)]);
    if (u < products) {
      tile_zero<C>();
      tile_dot<C, A, B>();
    }
    if (u >= SUM_TILES + BEHIND) {
      float* to = c + adding.tile * M * row_stride + adding.block * ROWS;
      if (adding.group == 0) sums.load_or_clear(to, row_stride, adding.first > 0);
      const F16 scale = load(w.scales + ((first_block + adding.block) * w.steps + adding.first + adding.group) * ROWS);
      const float* part = parts[(u - BEHIND) & (PARTS - 1)];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) sums.at[m][0] = fma(load(part + m * 16), scale, sums.at[m][0]);
      if (adding.group + 1 == adding.groups) sums.save(to, row_stride);
      advance(adding);
    }
  };
  const int64_t steps = products + SUM_TILES + BEHIND;
  for (int64_t u = 0;;) {
    step(u, std::integral_constant<int, 0>());
    if (++u == steps) break;
    step(u, std::integral_constant<int, 1>());
    if (++u == steps) break;
    step(u, std::integral_constant<int, 2>());
    if (++u == steps) break;
    step(u, std::integral_constant<int, 3>());
    if (++u == steps) break;
  }
}

using Int4Tile = void (*)(const Matrix&, int64_t, const uint8_t*, uint8_t*, float*, int64_t);
using Int4Panels = void (*)(const Matrix&, int64_t, int64_t, const uint8_t*, int64_t, int64_t, uint8_t*, float*, int64_t);

// int4_tile for heights 1 .. 16 / R, int4_panels for heights 9 .. 16.
template <int R, int... M>
Int4Tile choose_tile_of(int64_t height, std::integer_sequence<int, M...>) {
  static constexpr Int4Tile functions[] = {int4_tile<M + 1, R>...};
  return functions[height - 1];
}
template <int R>
Int4Tile choose_int4_tile(int64_t height) {
  return choose_tile_of<R>(height, std::make_integer_sequence<int, int(TILE_ROWS) / R>());
}
template <int... M>
Int4Panels choose_panels_of(int64_t height, std::integer_sequence<int, M...>) {
  static constexpr Int4Panels functions[] = {int4_panels<M + 9>...};
  return functions[height - 9];
}
inline Int4Panels choose_int4_panels(int64_t height) {
  return choose_panels_of(height, std::make_integer_sequence<int, 8>());
}

struct WidenedWeights;

constexpr int64_t PANEL_TILES = 8;  // tiles of tokens that share a panel; all stay in the first-level cache

struct Int4Tiles : TileProduct {
  static void multiply(const Matrix& w, int64_t block, int64_t blocks, const Unit* tokens, const TokenTiles& tiling,
                       int64_t first, int64_t last, float* c, int64_t row_stride) {
    const int64_t height = tiling.height, tile_bytes = w.steps * height * TILE_ROW, count = last - first;
    const uint8_t* const x = reinterpret_cast<const uint8_t*>(tokens) + first * tile_bytes;
    constexpr int64_t widened_tiles = std::max<int64_t>(2 * PANEL_GROUPS, RING_GROUPS * 4);
    uint8_t* const widened = scratch<WidenedWeights, uint8_t>(widened_tiles * TILE_BYTES);
    TileUnit unit;
    unit.configure(height);
    if (count == 1) return multiply_tile(w, block, blocks, x, height, widened, c, row_stride);
    const int64_t parts = (count + PANEL_TILES - 1) / PANEL_TILES;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t from = count * part / parts, here = count * (part + 1) / parts - from;
      choose_int4_panels(height)(w, block, blocks, x + from * tile_bytes, tile_bytes, here, widened,
                                 c + from * height * row_stride, row_stride);
    }
  }

 private:
  static void multiply_tile(const Matrix& w, int64_t block, int64_t blocks, const uint8_t* x, int64_t height,
                            uint8_t* widened, float* c, int64_t row_stride) {
    const int64_t widest = height <= 4 ? 4 : height <= 8 ? 2 : 1;
    for (int64_t b = 0; b < blocks;) {
      const int64_t together = b + widest <= blocks ? widest : 1;
      const Int4Tile tile = together == 4   ? choose_int4_tile<4>(height)
                            : together == 2 ? choose_int4_tile<2>(height)
                                            : choose_int4_tile<1>(height);
      tile(w, block + b, x, widened, c + b * ROWS, row_stride);
      b += together;
    }
  }
};

}  // namespace
}  // namespace moonshard
