// Products of packed tokens with packed weights: cuts the work into the tiles of tiles.h.
#pragma once
#include <utility>

#include "parallel.h"
#include "tiles.h"

namespace moonshard {
namespace {

// Tokens cut into tiles of nearly equal size, none larger than MAX_TILE_TOKENS.
struct Tiling {
  int64_t tokens, tiles;

  explicit Tiling(int64_t num_tokens = 0)
      : tokens(num_tokens), tiles((num_tokens + MAX_TILE_TOKENS - 1) / MAX_TILE_TOKENS) {}
  int64_t begin(int64_t tile) const { return tokens * tile / tiles; }
  int64_t largest() const { return (tokens + tiles - 1) / tiles; }
};

// Row blocks per tile: as many accumulators as there are registers, so that even one token hides the latency of FMA.
constexpr int blocks_per_tile(int64_t tokens) {
  const int64_t blocks = TILE_REGISTERS / tokens;
  return blocks >= 4 ? 4 : blocks >= 2 ? 2 : 1;
}

template <class Kind>
using TileFunction = void (*)(const Matrix&, int64_t, int64_t, int64_t, const typename Kind::Unit*, float*, int64_t,
                              bool);

template <class Kind, int R, int M>
constexpr TileFunction<Kind> tile_or_null() {
  if constexpr (R * M <= TILE_REGISTERS)
    return Kind::template tile<R, M>;
  else
    return nullptr;
}

template <class Kind, int R, int... M>
TileFunction<Kind> choose_tile(int64_t tokens, std::integer_sequence<int, M...>) {
  static constexpr TileFunction<Kind> functions[] = {tile_or_null<Kind, R, M + 1>()...};
  return functions[tokens - 1];
}

template <class Kind>
TileFunction<Kind> choose_tile(int blocks, int64_t tokens) {
  constexpr auto all = std::make_integer_sequence<int, MAX_TILE_TOKENS>();
  return blocks == 4   ? choose_tile<Kind, 4>(tokens, all)
         : blocks == 2 ? choose_tile<Kind, 2>(tokens, all)
                       : choose_tile<Kind, 1>(tokens, all);
}

// Units that one token takes when packed.
template <class Kind>
constexpr int64_t packed_units(int64_t columns) {
  return (columns + Kind::COLUMNS - 1) / Kind::COLUMNS * Kind::UNITS;
}

// A row as words of two bf16; an odd last column gets a zero. Float32 rows are rounded into `memory`.
inline const uint16_t* bf16_row(const uint16_t* row, int64_t, uint16_t*) { return row; }
inline const uint16_t* bf16_row(const float* row, int64_t columns, uint16_t* memory) {
  int64_t k = 0;
  for (; k + 16 <= columns; k += 16) store(memory + k, load(row + k));
  for (; k < columns; k++) memory[k] = to_bf16(row[k]);
  return memory;
}

struct RoundedRow;

// Packs the tokens of one tile; row(m) is the first of `columns` numbers of token m.
template <class Kind, class T, class Row>
void pack_tile(const Row& row, int64_t tokens, int64_t columns, typename Kind::Unit* out) {
  const int64_t whole = columns / Kind::COLUMNS * Kind::COLUMNS;
  for (int64_t m = 0; m < tokens; m++) {
    if constexpr (Kind::WORDS) {
      const uint16_t* from = bf16_row(row(m), columns, scratch<RoundedRow, uint16_t>(columns));
      for (int64_t i = 0; i < columns / 2; i++) std::memcpy(out + i * tokens + m, from + 2 * i, 4);
      if (columns % 2) out[columns / 2 * tokens + m] = from[columns - 1];
    } else {
      const T* from = row(m);
      typename Kind::Unit* to = out;
      float value[Kind::COLUMNS];
      for (int64_t k = 0; k < whole; k += Kind::COLUMNS, to += Kind::UNITS * tokens) {
        for (int64_t i = 0; i < Kind::COLUMNS; i++) value[i] = widen(from[k + i]);
        Kind::pack(value, to, tokens, m);
      }
      if (whole == columns) continue;
      for (int64_t i = 0; i < Kind::COLUMNS; i++) value[i] = whole + i < columns ? widen(from[whole + i]) : 0.0f;
      Kind::pack(value, to, tokens, m);
    }
  }
}

// Tiles [first, last) of the packed tokens x times row blocks [block, block + blocks) of w.
// c  [tokens of these tiles, blocks * 16] f32, row_stride apart
// The columns are walked in passes short enough for the caches; the sums wait in c between passes.
template <class Kind>
void multiply(const Matrix& w, int64_t block, int64_t blocks, const typename Kind::Unit* x, const Tiling& tiling,
              int64_t first, int64_t last, float* c, int64_t row_stride) {
  const int64_t token_units = w.steps * Kind::UNITS, origin = tiling.begin(first);
  const int64_t pass = last - first > 1 ? Kind::PASS_STEPS : w.steps;
  const int widest = blocks_per_tile(tiling.largest());
  for (int64_t step = 0; step < w.steps; step += pass) {
    const int64_t end = step + pass < w.steps ? step + pass : w.steps;
    for (int64_t b = 0; b < blocks;) {
      const int together = b + widest <= blocks ? widest : 1;
      for (int64_t tile = first; tile < last; tile++) {
        const int64_t begin = tiling.begin(tile), tokens = tiling.begin(tile + 1) - begin;
        const auto* from = x + begin * token_units + step * Kind::UNITS * tokens;
        choose_tile<Kind>(together, tokens)(w, block + b, step, end, from,
                                            c + (begin - origin) * row_stride + b * ROWS, row_stride, step > 0);
      }
      b += together;
    }
  }
}

}  // namespace
}  // namespace moonshard
