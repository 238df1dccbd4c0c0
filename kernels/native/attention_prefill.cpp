// Causal MLA attention of a prompt chunk, after keys and values have been projected from the latents.
//
// One task is one head: it packs the head's keys and values once, as weights of tiles.h, then takes the queries in
// chunks. The context is cut into tiles of TILE_TOKENS positions counted from its start, and each row takes its tiles in
// order (running maximum, sum and output). A tile past a row's own position does not change the row, so its result
// depends neither on how the prompt was cut into chunks nor on the other rows of its chunk.
#include "products.h"

namespace moonshard {
namespace {

constexpr int64_t TILE_TOKENS = 64;
constexpr int64_t TILE_BLOCKS = TILE_TOKENS / ROWS;
constexpr int64_t CHUNK_TILES = 8;  // the queries of a chunk and one tile of keys stay in the first two cache levels

struct Prompt {
  const void* q_nope;     // [tokens, heads, nope]
  const void* q_rope;     // [tokens, heads, rope]
  const void* projected;  // [context, heads, nope + v_dim], contiguous
  const void* rope_keys;  // [context, rope]
  void* out;              // [tokens, heads, v_dim], contiguous
  int64_t tokens, heads, nope, rope, v_dim, context;
  int64_t q_nope_strides[2], q_rope_strides[2], rope_key_stride;
  float scale;

  int64_t key() const { return nope + rope; }
};

struct HeadKeys;
struct HeadValues;
struct ChunkQueries;
struct ChunkWeights;
struct ChunkScores;
struct ChunkSums;
struct ChunkState;
struct RowBuffer;

// Puts numbers [first, first + count) of one position's key into its row of a block of keys.
inline void put_key(const float* from, int64_t first, int64_t count, int64_t row, float* block) {
  for (int64_t d = 0; d < count; d++) block[(first + d) * ROWS + row] = from[d];
}
// Puts one or two positions of a head's value into their step of every block of values; blocks are `block_units` apart.
inline void put_values(const float* from, const float*, int64_t count, float* step, int64_t block_units) {
  for (int64_t d = 0; d < count; d++) step[d / ROWS * block_units + d % ROWS] = from[d];
}
#ifdef MOONSHARD_BF16_DOT
inline void put_key(const uint16_t* from, int64_t first, int64_t count, int64_t row, uint32_t* block) {
  for (int64_t d = 0; d < count; d += 2) std::memcpy(block + (first + d) / 2 * ROWS + row, from + d, 4);
}
inline void put_values(const uint16_t* even, const uint16_t* odd, int64_t count, uint32_t* step, int64_t block_units) {
  for (int64_t d = 0; d < count; d++)
    step[d / ROWS * block_units + d % ROWS] = even[d] | (odd ? uint32_t(odd[d]) << 16 : 0);
}
#endif
inline void put_key(const uint16_t* from, int64_t first, int64_t count, int64_t row, float* block) {
  for (int64_t d = 0; d < count; d++) block[(first + d) * ROWS + row] = widen(from[d]);
}
inline void put_values(const uint16_t* from, const uint16_t*, int64_t count, float* step, int64_t block_units) {
  for (int64_t d = 0; d < count; d++) step[d / ROWS * block_units + d % ROWS] = widen(from[d]);
}

// One head's queries, keys and values, and the softmax state of a chunk's rows.
template <class Product, class T>
struct Head {
  using Kind = typename Product::Weights;
  using Tiling = typename Product::Tiling;
  using Unit = typename Product::Unit;
  const Prompt& p;
  const int64_t head;
  Matrix keys, values;  // rows: positions; rows: numbers of the value, columns: positions

  int64_t padded_v() const { return (p.v_dim + ROWS - 1) / ROWS * ROWS; }
  int64_t first_position() const { return p.context - p.tokens; }

  static int64_t steps_of(int64_t columns) { return (columns + Kind::COLUMNS - 1) / Kind::COLUMNS; }

  const T* projected(int64_t t) const {
    return static_cast<const T*>(p.projected) + (t * p.heads + head) * (p.nope + p.v_dim);
  }

  void pack() {
    const int64_t tiles = (p.context + TILE_TOKENS - 1) / TILE_TOKENS, padded = tiles * TILE_TOKENS;
    keys.steps = steps_of(p.key());
    values.steps = steps_of(padded);
    const int64_t key_bytes = padded / ROWS * keys.steps * Kind::WORD_BYTES;
    const int64_t value_bytes = padded_v() / ROWS * values.steps * Kind::WORD_BYTES;
    uint8_t* key_words = scratch<HeadKeys, uint8_t>(key_bytes);
    uint8_t* value_words = scratch<HeadValues, uint8_t>(value_bytes);
    std::memset(key_words, 0, size_t(key_bytes));
    std::memset(value_words, 0, size_t(value_bytes));
    Unit* key_units = reinterpret_cast<Unit*>(key_words);
    Unit* value_units = reinterpret_cast<Unit*>(value_words);
    for (int64_t t = 0; t < p.context; t++) {
      Unit* block = key_units + t / ROWS * keys.steps * ROWS;
      put_key(projected(t), 0, p.nope, t % ROWS, block);
      put_key(static_cast<const T*>(p.rope_keys) + t * p.rope_key_stride, p.nope, p.rope, t % ROWS, block);
    }
    for (int64_t t = 0; t < p.context; t += Kind::COLUMNS) {
      const T* next = t + 1 < p.context ? projected(t + 1) + p.nope : nullptr;
      put_values(projected(t) + p.nope, next, p.v_dim, value_units + t / Kind::COLUMNS * ROWS, values.steps * ROWS);
    }
    keys.words = key_words;
    values.words = value_words;
  }

  // Rows [begin, begin + tiling.tokens) of the prompt chunk.
  void attend(int64_t begin, const Tiling& tiling) const {
    const int64_t rows = tiling.tokens, padded = tiling.rows(), tile_steps = TILE_TOKENS / Kind::COLUMNS;
    Unit* queries = scratch<ChunkQueries, Unit>(padded * Product::row_units(p.key()));
    Unit* weights = scratch<ChunkWeights, Unit>(padded * Product::row_units(TILE_TOKENS));
    float* scores = scratch<ChunkScores, float>(padded * TILE_TOKENS);
    float* sums = scratch<ChunkSums, float>(padded * padded_v());
    float* maximum = scratch<ChunkState, float>(2 * rows);
    float* total = maximum + rows;
    pack_queries(begin, tiling, queries);
    std::memset(sums, 0, size_t(padded * padded_v()) * sizeof(float));
    for (int64_t m = 0; m < rows; m++) maximum[m] = -__builtin_inff(), total[m] = 0.0f;
    const int64_t last_position = first_position() + begin + rows - 1;
    for (int64_t tile = 0; tile * TILE_TOKENS <= last_position; tile++) {
      Product::multiply(keys, tile * TILE_BLOCKS, TILE_BLOCKS, queries, tiling, 0, tiling.tiles, scores, TILE_TOKENS);
      for (int64_t m = 0; m < rows; m++) {
        const int64_t visible = first_position() + begin + m + 1 - tile * TILE_TOKENS;
        soften(scores + m * TILE_TOKENS, visible, maximum[m], total[m], sums + m * padded_v());
      }
      for (int64_t part = 0; part < tiling.tiles; part++)
        Product::template pack<float>([&](int64_t m) { return scores + m * TILE_TOKENS; }, tiling, part, TILE_TOKENS,
                                      weights);
      Product::add(values, 0, padded_v() / ROWS, tile * tile_steps, tile_steps, weights, tiling, sums, padded_v());
    }
    for (int64_t m = 0; m < rows; m++) {
      T* out = static_cast<T*>(p.out) + ((begin + m) * p.heads + head) * p.v_dim;
      const float* from = sums + m * padded_v();
      int64_t d = 0;
      for (; d + 16 <= p.v_dim; d += 16) store(out + d, div(load(from + d), splat(total[m])));
      for (; d < p.v_dim; d++) round_to(out + d, from[d] / total[m]);
    }
  }

  void pack_queries(int64_t begin, const Tiling& tiling, Unit* out) const {
    T* joined = scratch<RowBuffer, T>(p.key());
    const auto row = [&](int64_t m) {
      const int64_t t = begin + m;
      const T* nope = static_cast<const T*>(p.q_nope) + t * p.q_nope_strides[0] + head * p.q_nope_strides[1];
      const T* rope = static_cast<const T*>(p.q_rope) + t * p.q_rope_strides[0] + head * p.q_rope_strides[1];
      std::memcpy(joined, nope, size_t(p.nope) * sizeof(T));
      std::memcpy(joined + p.nope, rope, size_t(p.rope) * sizeof(T));
      return joined;
    };
    for (int64_t tile = 0; tile < tiling.tiles; tile++)
      Product::template pack<T>(row, tiling, tile, p.key(), out);
  }

  // Turns scores of one row and tile into softmax weights, and moves the row's sums to the new maximum. Weights are zero
  // where the row sees no position of the tile.
  void soften(float* scores, int64_t visible, float& maximum, float& total, float* sums) const {
    if (visible <= 0) {
      std::memset(scores, 0, TILE_TOKENS * sizeof(float));
      return;
    }
    for (int64_t i = visible; i < TILE_TOKENS; i++) scores[i] = -__builtin_inff();
    F16 top = splat(maximum);
    for (int64_t i = 0; i < TILE_TOKENS; i += 16) {
      store(scores + i, mul(load(scores + i), splat(p.scale)));
      top = max(top, load(scores + i));
    }
    float lane[16];
    store(lane, top);
    float highest = lane[0];
    for (float v : lane) highest = v > highest || v != v ? v : highest;
    store(lane, exp(splat(maximum - highest)));
    const float keep = lane[0];
    F16 added = zeros();
    for (int64_t i = 0; i < TILE_TOKENS; i += 16) store(scores + i, exp(sub(load(scores + i), splat(highest))));
    for (int64_t i = visible; i < TILE_TOKENS; i++) scores[i] = 0.0f;
    for (int64_t i = 0; i < TILE_TOKENS; i += 16) {
      store(scores + i, as_multiplied(load(scores + i)));
      added = add(added, load(scores + i));
    }
    total = __builtin_fmaf(total, keep, sum(added));
    maximum = highest;
    for (int64_t d = 0; d < padded_v(); d += 16) store(sums + d, mul(load(sums + d), splat(keep)));
  }

  // The weight as the product reads it, so that weights and their sum agree.
  static F16 as_multiplied(F16 weight) {
    if (Kind::COLUMNS == 1) return weight;
    uint16_t half[16];
    store(half, weight);
    return load(half);
  }
};

template <class Product, class T>
void run(const Prompt& p, int64_t threads) {
  using Tiling = typename Product::Tiling;
  constexpr int64_t chunk = CHUNK_TILES * Tiling::MOST_TOKENS;
  parallel(threads, Phase(p.heads, [&](int64_t head) {
    Head<Product, T> work{p, head, {}, {}};
    work.pack();
    for (int64_t begin = 0; begin < p.tokens; begin += chunk)
      work.attend(begin, Tiling(p.tokens - begin < chunk ? p.tokens - begin : chunk));
  }));
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

extern "C" void mla_prefill(const void* q_nope, const void* q_rope, const void* projected, const void* rope_keys,
                            int64_t is_bf16, void* out, int64_t tokens, int64_t heads, int64_t nope, int64_t rope,
                            int64_t v_dim, int64_t context, const int64_t* strides, float scale, int64_t threads) {
  const Prompt p{q_nope,  q_rope, projected, rope_keys, out, tokens, heads, nope, rope, v_dim,
                 context, {strides[0], strides[1]}, {strides[2], strides[3]}, strides[4], scale};
  if (tokens == 0) return;
  if (!is_bf16)
    run<Vectors<PlainF32>, float>(p, threads);
#ifdef MOONSHARD_BF16_DOT
  else if (nope % 2 == 0 && rope % 2 == 0)
    run<DenseProduct, uint16_t>(p, threads);
#endif
  else
    run<Vectors<PlainF32>, uint16_t>(p, threads);
}
