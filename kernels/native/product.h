// Products of packed tokens with packed weights, cut into the tiles of tiles.h.
//
// An operation is a template over a product, which defines how tokens are cut into tiles, packed and multiplied.
// `Vectors` makes a product of each kind in tiles.h; amx/ has the products of the tile unit. A product has
//
//   Tiling     cuts tokens into tiles; it may have more packed rows than tokens
//   Unit       element of packed tokens, row_units(columns) for each row
//   pack       packs one tile of tokens
//   task_blocks, TASK_TILES   size of one task of a large product
//   multiply   tiles [first, last) of packed tokens times row blocks [block, block + blocks) of a matrix
#pragma once
#include <utility>

#include "parallel.h"
#include "tiles.h"

namespace moonshard {
namespace {

// Tokens cut into tiles of nearly equal size, none larger than MAX_TILE_TOKENS.
struct Tiling {
  static constexpr int64_t MOST_TOKENS = MAX_TILE_TOKENS;  // of a tile
  int64_t tokens, tiles;

  explicit Tiling(int64_t num_tokens = 0)
      : tokens(num_tokens), tiles((num_tokens + MAX_TILE_TOKENS - 1) / MAX_TILE_TOKENS) {}
  int64_t begin(int64_t tile) const { return tokens * tile / tiles; }
  int64_t largest() const { return (tokens + tiles - 1) / tiles; }
  // Rows in memory: of all tiles, before a tile, and in a tile.
  int64_t rows() const { return tokens; }
  int64_t first_row(int64_t tile) const { return begin(tile); }
  int64_t rows_of(int64_t tile) const { return begin(tile + 1) - begin(tile); }
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

// A row as words of two bf16, padded with a zero if the columns are odd. Float32 rows are rounded into `memory`.
inline const uint16_t* bf16_row(const uint16_t* row, int64_t, uint16_t*) { return row; }
inline const uint16_t* bf16_row(const float* row, int64_t columns, uint16_t* memory) {
  int64_t k = 0;
  for (; k + 16 <= columns; k += 16) store(memory + k, load(row + k));
  for (; k < columns; k++) memory[k] = to_bf16(row[k]);
  return memory;
}

struct RoundedRow;

template <class Kind>
struct Vectors {
  using Weights = Kind;
  using Tiling = moonshard::Tiling;
  using Unit = typename Kind::Unit;
  static constexpr int64_t TASK_TILES = 20;  // the tokens of a task, for one pass, stay in the second-level cache

  static int64_t task_blocks(int64_t, int64_t tiles, int64_t) { return tiles > 1 ? 8 : 4; }
  static int64_t row_units(int64_t columns) { return (columns + Kind::COLUMNS - 1) / Kind::COLUMNS * Kind::UNITS; }

  // row(m) points to the `columns` numbers of token m of the call. x: packed tokens of all tiles.
  template <class T, class Row>
  static void pack(const Row& row, const Tiling& tiling, int64_t tile, int64_t columns, Unit* x) {
    const int64_t begin = tiling.begin(tile), tokens = tiling.begin(tile + 1) - begin;
    const int64_t whole = columns / Kind::COLUMNS * Kind::COLUMNS;
    Unit* const out = x + begin * row_units(columns);
    for (int64_t m = 0; m < tokens; m++) {
      if constexpr (Kind::WORDS) {
        const uint16_t* from = bf16_row(row(begin + m), columns, scratch<RoundedRow, uint16_t>(columns));
        for (int64_t i = 0; i < columns / 2; i++) std::memcpy(out + i * tokens + m, from + 2 * i, 4);
        if (columns % 2) out[columns / 2 * tokens + m] = from[columns - 1];
      } else {
        const T* from = row(begin + m);
        Unit* to = out;
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

  // Puts one group of columns, already in the dtype of the run, into row m of a tile.
  static void put_group(const float* value, const Tiling& tiling, int64_t tile, int64_t m, int64_t group,
                        int64_t columns, Unit* x) {
    const int64_t tokens = tiling.rows_of(tile);
    Kind::pack(value, x + tiling.begin(tile) * row_units(columns) + group * Kind::UNITS * tokens, tokens, m);
  }

  // c  [rows of these tiles, blocks * 16] f32, row_stride apart
  // The columns are taken in passes that fit the caches; between passes the sums are in c.
  static void multiply(const Matrix& w, int64_t block, int64_t blocks, const Unit* x, const Tiling& tiling,
                       int64_t first, int64_t last, float* c, int64_t row_stride) {
    const int64_t pass = last - first > 1 ? Kind::PASS_STEPS : w.steps;
    for (int64_t step = 0; step < w.steps; step += pass) {
      const int64_t steps = step + pass < w.steps ? pass : w.steps - step;
      multiply_steps(w, block, blocks, step, steps, x, step, w.steps, tiling, first, last, c, row_stride, step > 0);
    }
  }

  // Adds the product of steps [step, step + steps) of the weights with tokens packed with only these steps.
  static void add(const Matrix& w, int64_t block, int64_t blocks, int64_t step, int64_t steps, const Unit* x,
                  const Tiling& tiling, float* c, int64_t row_stride) {
    multiply_steps(w, block, blocks, step, steps, x, 0, steps, tiling, 0, tiling.tiles, c, row_stride, true);
  }

 private:
  static void multiply_steps(const Matrix& w, int64_t block, int64_t blocks, int64_t step, int64_t steps,
                             const Unit* x, int64_t x_step, int64_t x_steps, const Tiling& tiling, int64_t first,
                             int64_t last, float* c, int64_t row_stride, bool resume) {
    const int64_t origin = tiling.begin(first);
    const int widest = blocks_per_tile(tiling.largest());
    for (int64_t b = 0; b < blocks;) {
      const int together = b + widest <= blocks ? widest : 1;
      for (int64_t tile = first; tile < last; tile++) {
        const int64_t begin = tiling.begin(tile), tokens = tiling.begin(tile + 1) - begin;
        choose_tile<Kind>(together, tokens)(w, block + b, step, step + steps,
                                            x + (begin * x_steps + x_step * tokens) * Kind::UNITS,
                                            c + (begin - origin) * row_stride + b * ROWS, row_stride, resume);
      }
      b += together;
    }
  }
};

}  // namespace
}  // namespace moonshard
