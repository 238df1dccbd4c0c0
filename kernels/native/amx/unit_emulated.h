// The tile unit in plain C++, after the pseudocode in Intel's manual (TDPBF16PS): for tests on CPUs without AMX.
#pragma once
#include <cmath>

namespace moonshard {
namespace {

struct Tiles {
  TileShapes shapes;
  alignas(64) uint8_t data[8][16][64];
};
inline Tiles& tiles() {
  static thread_local Tiles all;
  return all;
}

inline bool tiles_permitted() { return true; }
inline void tile_configure(const TileShapes& shapes) {
  tiles().shapes = shapes;
  std::memset(tiles().data, 0, sizeof tiles().data);
}
inline void tile_release() { tile_configure({}); }

template <int T>
inline void tile_load_rows(const void* from, int64_t stride) {
  std::memset(tiles().data[T], 0, sizeof tiles().data[T]);
  for (int r = 0; r < tiles().shapes.rows[T]; r++)
    std::memcpy(tiles().data[T][r], static_cast<const uint8_t*>(from) + r * stride, tiles().shapes.bytes[T]);
}
template <int T>
inline void tile_store_rows(void* to, int64_t stride) {
  for (int r = 0; r < tiles().shapes.rows[T]; r++)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, tiles().data[T][r], tiles().shapes.bytes[T]);
}
template <int T, int ROWS>
inline void tile_load(const uint8_t* from) {
  tile_load_rows<T>(from, TILE_ROW);
}
template <int T, int ROWS>
inline void tile_store(float* to) {
  tile_store_rows<T>(to, TILE_ROW);
}
template <int T>
inline void tile_zero() {
  std::memset(tiles().data[T], 0, sizeof tiles().data[T]);
}

// Denormals count as zero, on the way in and out.
inline float normal(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }
inline float bf16_at(const uint8_t* row, int i) {
  uint32_t bits = uint32_t(row[2 * i]) << 16 | uint32_t(row[2 * i + 1]) << 24;
  float value;
  std::memcpy(&value, &bits, 4);
  return normal(value);
}
// The innermost loop runs over the sixteen columns of a row, whose sums are independent, so that the compiler can use
// vectors.
template <int C, int A, int B>
inline void tile_dot() {
  const TileShapes& s = tiles().shapes;
  const int columns = s.bytes[C] / 4;
  for (int m = 0; m < s.rows[C]; m++) {
    float chain[2][16] = {}, c[16];
    for (int k = 0; k < s.bytes[A] / 2; k++) {
      const float a = bf16_at(tiles().data[A][m], k);
      const uint8_t* b = tiles().data[B][k / 2];
      for (int n = 0; n < 16; n++)
        chain[k % 2][n] = normal(std::fma(a, bf16_at(b, 2 * n + k % 2), chain[k % 2][n]));
    }
    std::memcpy(c, tiles().data[C][m], sizeof c);
    for (int n = 0; n < columns; n++) c[n] = normal(normal(c[n]) + normal(chain[0][n] + chain[1][n]));
    std::memcpy(tiles().data[C][m], c, size_t(columns) * 4);
  }
}

}  // namespace
}  // namespace moonshard
