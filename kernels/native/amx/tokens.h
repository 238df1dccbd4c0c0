// Tokens packed for the tile unit, and the shapes of the eight tiles.
//
// Tokens are cut into tiles of equal height (at most 16), padded with rows of zeros. A tile of tokens is stored in steps
// of 32 columns, each `height` rows of 64 bytes, so that a step is loaded from contiguous memory.
#pragma once
#include <algorithm>

#include "unit.h"
#include "../product.h"

namespace moonshard {
namespace {

constexpr int64_t STEP = 32;        // columns of a tile, and of an INT4 group
constexpr int64_t STEP_WORDS = 16;  // pairs of columns

struct TokenTiles {
  static constexpr int64_t MOST_TOKENS = TILE_ROWS;
  int64_t tokens, tiles, height;

  explicit TokenTiles(int64_t num_tokens = 0)
      : tokens(num_tokens), tiles((num_tokens + TILE_ROWS - 1) / TILE_ROWS),
        height(tiles ? (num_tokens + tiles - 1) / tiles : 1) {}
  int64_t begin(int64_t tile) const { return std::min(tile * height, tokens); }
  int64_t rows() const { return tiles * height; }
  int64_t first_row(int64_t tile) const { return tile * height; }
  int64_t rows_of(int64_t) const { return height; }
};

// Tiles 0 and 1 hold tokens, 2 and 3 weights, 4 to 7 sums. `words`: pairs of columns, 16 except in a last short step.
inline TileShapes tile_shapes(int64_t height, int64_t words) {
  TileShapes s;
  for (int t = 0; t < 8; t++) {
    s.rows[t] = uint8_t(t == 2 || t == 3 ? words : height);
    s.bytes[t] = uint16_t(t < 2 ? words * 4 : TILE_ROW);
  }
  return s;
}

// The tile unit of this thread during a product. The state is released at the end; otherwise the operating system would
// save it at every context switch.
class TileUnit {
 public:
  TileUnit() = default;
  TileUnit(const TileUnit&) = delete;
  ~TileUnit() {
    if (height_) tile_release();
  }
  void configure(int64_t height, int64_t words = STEP_WORDS) {
    if (height == height_ && words == words_) return;
    const TileShapes shapes = tile_shapes(height, words);
    tile_configure(shapes);
    height_ = height, words_ = words;
  }

 private:
  int64_t height_ = 0, words_ = 0;
};

// Layout of tokens in memory, shared by both products of the tile unit (product.h).
struct TileProduct {
  using Tiling = TokenTiles;
  using Unit = uint32_t;

  static int64_t row_units(int64_t columns) { return (columns + STEP - 1) / STEP * STEP_WORDS; }

  template <class T, class Row>
  static void pack(const Row& row, const TokenTiles& tiling, int64_t tile, int64_t columns, Unit* x) {
    const int64_t whole = columns / STEP, rest = columns % STEP * 2, steps = whole + (rest > 0);
    const int64_t step_words = tiling.height * STEP_WORDS;
    Unit* to = x + tiling.first_row(tile) * row_units(columns);
    for (int64_t m = 0; m < tiling.height; m++, to += STEP_WORDS) {
      const int64_t token = tiling.first_row(tile) + m;
      if (token >= tiling.tokens) {
        for (int64_t s = 0; s < steps; s++) std::memset(to + s * step_words, 0, TILE_ROW);
        continue;
      }
      const uint16_t* from = bf16_row(row(token), columns, scratch<RoundedRow, uint16_t>(columns));
      for (int64_t s = 0; s < whole; s++) std::memcpy(to + s * step_words, from + s * STEP, TILE_ROW);
      if (rest) {
        std::memset(to + whole * step_words, 0, TILE_ROW);
        std::memcpy(to + whole * step_words, from + whole * STEP, size_t(rest));
      }
    }
  }

  static void put_group(const float* value, const TokenTiles& tiling, int64_t tile, int64_t m, int64_t group,
                        int64_t columns, Unit* x) {
    Unit* to = x + tiling.first_row(tile) * row_units(columns) + (group * tiling.height + m) * STEP_WORDS;
    store(reinterpret_cast<uint16_t*>(to), load(value));
    store(reinterpret_cast<uint16_t*>(to) + 16, load(value + 16));
  }
};

}  // namespace
}  // namespace moonshard
