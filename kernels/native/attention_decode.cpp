// Absorbed MLA attention of one query token per row over the paged latent KV cache.
//
// A context is cut into tiles of TILE_TOKENS positions, counted from its start. Each tile gives a partial result with
// its own maximum; partials are merged in the order of the tiles. Nothing in this depends on the other rows, on the
// number of threads or on whether the tiles of a row were computed by one thread or by several.
//
// Heads stand in the lanes, sixteen at a time: the scores of a tile are its tokens times the queries as weights, its
// result is the softmax weights as tokens times the latents as weights. `Math` says in which numbers.
#include "attention_math.h"
#include "operations.h"
#include "parallel.h"

namespace moonshard {
namespace {

struct Context {
  const void* q_latent;  // [rows, heads, latent]
  const void* q_rope;    // [rows, heads, rope]
  const void* cache;     // [blocks, block_tokens, latent + rope]
  const int32_t* block_tables;
  const int32_t* context_lens;
  void* out;  // [rows, heads, latent]
  int64_t rows, heads, latent, rope, block_tokens;
  int64_t q_latent_strides[2], q_rope_strides[2];  // row, head
  int64_t cache_strides[2];                        // block, token
  int64_t table_stride;
  float scale;

  int64_t width() const { return latent + rope; }
  int64_t head_groups() const { return (heads + LANES - 1) / LANES; }
  int64_t tiles(int64_t row) const { return (int64_t(context_lens[row]) + TILE_TOKENS - 1) / TILE_TOKENS; }
  int64_t heads_from(int64_t first) const { return heads - first < LANES ? heads - first : LANES; }
};

// What is known of sixteen heads after some tiles.
struct Partial {
  float* maximum;  // [16]
  float* weight;   // [16], sum of the softmax weights
  float* sums;     // [16, latent], relative to the maximum
};
Partial partial_at(float* memory) { return {memory, memory + LANES, memory + 2 * LANES}; }
int64_t partial_size(const Context& c) { return LANES * (c.latent + 2); }

// Queries of up to sixteen heads as weights. Lanes past the last head are zero.
template <class Math>
void pack_queries(const Context& c, int64_t row, int64_t first_head, typename Math::Unit* out) {
  using T = typename Math::Cached;
  std::memset(out, 0, size_t(Math::units(c.width()) * LANES) * sizeof(*out));
  for (int64_t lane = 0; lane < c.heads_from(first_head); lane++) {
    const int64_t head = first_head + lane;
    const T* latent = static_cast<const T*>(c.q_latent) + row * c.q_latent_strides[0] + head * c.q_latent_strides[1];
    const T* rope = static_cast<const T*>(c.q_rope) + row * c.q_rope_strides[0] + head * c.q_rope_strides[1];
    Math::put(latent, 0, c.latent, lane, out);
    Math::put(rope, c.latent, c.rope, lane, out);
  }
}

// The tokens of a tile: where they are if one block holds them as the products want them, else a copy in `memory`.
template <class Math>
Tokens<typename Math::Unit> read_tokens(const Context& c, int64_t row, int64_t begin, int64_t tokens,
                                        typename Math::Unit* memory) {
  using T = typename Math::Cached;
  using Unit = typename Math::Unit;
  const int32_t* table = c.block_tables + row * c.table_stride;
  const auto at = [&](int64_t position) {
    return static_cast<const T*>(c.cache) + table[position / c.block_tokens] * c.cache_strides[0] +
           position % c.block_tokens * c.cache_strides[1];
  };
  constexpr int64_t PER_UNIT = sizeof(Unit) / sizeof(T);
  const bool one_block = begin / c.block_tokens == (begin + tokens - 1) / c.block_tokens;
  if (Math::AS_CACHED && one_block && c.cache_strides[1] % PER_UNIT == 0)
    return {reinterpret_cast<const Unit*>(at(begin)), c.cache_strides[1] / PER_UNIT};
  const int64_t units = Math::units(c.width());
  for (int64_t t = 0; t < tokens; t++) Math::read(at(begin + t), c.width(), memory + t * units);
  return {memory, units};
}

// Moves `total` to the maximum of both; keep and take are what the old and the new sums are worth there.
void join_weights(const Partial& total, const float* maximum, const float* weight, float* keep, float* take) {
  const F16 top = max(load(total.maximum), load(maximum));
  store(keep, exp(sub(load(total.maximum), top)));
  store(take, exp(sub(load(maximum), top)));
  store(total.weight, fma(load(total.weight), load(keep), mul(load(weight), load(take))));
  store(total.maximum, top);
}

void merge(const Context& c, int64_t heads, const Partial& total, const Partial& next) {
  float keep[LANES], take[LANES];
  join_weights(total, next.maximum, next.weight, keep, take);
  for (int64_t head = 0; head < heads; head++) {
    float* to = total.sums + head * c.latent;
    const float* from = next.sums + head * c.latent;
    const float a = keep[head], b = take[head];
    for (int64_t d = 0; d < c.latent; d++) to[d] = __builtin_fmaf(to[d], a, from[d] * b);
  }
}

struct TileTokens;
struct TileValues;
struct TileScores;
struct TileWeights;

// One tile of a row. The first becomes `p`, later ones are merged into it, with the same arithmetic as `merge`.
template <class Math>
void attend_tile(const Context& c, int64_t row, int64_t heads, const typename Math::Unit* queries, int64_t tile,
                 bool first, const Partial& p) {
  using Unit = typename Math::Unit;
  const int64_t begin = tile * TILE_TOKENS, left = c.context_lens[row] - begin, units = Math::units(c.width());
  const int64_t tokens = left < TILE_TOKENS ? left : TILE_TOKENS;
  float* scores = scratch<TileScores, float>(TILE_TOKENS * LANES);
  const Tokens<Unit> keys =
      read_tokens<Math>(c, row, begin, tokens, scratch<TileTokens, Unit>(TILE_TOKENS * units));
  score_tokens<Math>(keys, units, tokens, queries, scores);
  for (int64_t t = 0; t < tokens; t++) store(scores + t * LANES, mul(load(scores + t * LANES), splat(c.scale)));
  F16 top = load(scores), total = zeros();
  for (int64_t t = 1; t < tokens; t++) top = max(top, load(scores + t * LANES));
  for (int64_t t = 0; t < tokens; t++) {
    const F16 weight = Math::rounded(exp(sub(load(scores + t * LANES), top)));
    total = add(total, weight);
    store(scores + t * LANES, weight);
  }
  float maximum[LANES], weight[LANES], keep[LANES], take[LANES];
  store(first ? p.maximum : maximum, top);
  store(first ? p.weight : weight, total);
  if (!first) join_weights(p, maximum, weight, keep, take);
  const Unit* weights = Math::pack_weights(scores, tokens, scratch<TileWeights, Unit>(TILE_TOKENS * LANES));
  const Tokens<Unit> values =
      Math::as_values(keys, tokens, c.latent, [](int64_t count) { return scratch<TileValues, Unit>(count); });
  weigh_values<Math>(weights, heads, values, Math::units(tokens), c.latent, p.sums,
                     first ? Joining{} : Joining{keep, take});
}

template <class T>
void finish(const Context& c, int64_t row, int64_t first_head, const Partial& p) {
  for (int64_t lane = 0; lane < c.heads_from(first_head); lane++) {
    T* out = static_cast<T*>(c.out) + (row * c.heads + first_head + lane) * c.latent;
    const float* from = p.sums + lane * c.latent;
    int64_t d = 0;
    for (; d + LANES <= c.latent; d += LANES) store(out + d, div(load(from + d), splat(p.weight[lane])));
    for (; d < c.latent; d++) round_to(out + d, from[d] / p.weight[lane]);
  }
}

template <class T>
void clear(const Context& c, int64_t row) {
  std::memset(static_cast<T*>(c.out) + row * c.heads * c.latent, 0, size_t(c.heads * c.latent) * sizeof(T));
}

struct Queries;
struct RowPartials;
struct SharedQueries;
struct SharedPartials;

// All tiles of one row and sixteen heads on this thread.
template <class Math>
void attend_row(const Context& c, int64_t row, int64_t first_head) {
  using Unit = typename Math::Unit;
  const int64_t heads = c.heads_from(first_head);
  Unit* queries = scratch<Queries, Unit>(Math::units(c.width()) * LANES);
  const Partial total = partial_at(scratch<RowPartials, float>(partial_size(c)));
  pack_queries<Math>(c, row, first_head, queries);
  for (int64_t tile = 0; tile < c.tiles(row); tile++)
    attend_tile<Math>(c, row, heads, queries, tile, tile == 0, total);
  finish<typename Math::Cached>(c, row, first_head, total);
}

// The same with the tiles shared out in waves; the partials of a wave are then merged in order, by one thread per
// sixteen heads.
template <class Math>
void attend_row_together(const Context& c, int64_t row, int64_t threads) {
  using Unit = typename Math::Unit;
  const int64_t groups = c.head_groups(), tiles = c.tiles(row), size = partial_size(c);
  const int64_t wave = 4 * threads;  // bounds the memory for the partials of a long context
  const int64_t query_units = Math::units(c.width()) * LANES;
  Unit* queries = scratch<SharedQueries, Unit>(groups * query_units);
  float* memory = scratch<SharedPartials, float>(groups * (wave + 1) * size);
  for (int64_t group = 0; group < groups; group++)
    pack_queries<Math>(c, row, group * LANES, queries + group * query_units);
  for (int64_t begin = 0; begin < tiles; begin += wave) {
    const int64_t count = begin + wave < tiles ? wave : tiles - begin;
    const auto attend = [&](int64_t task) {
      const int64_t group = task % groups, tile = task / groups;
      attend_tile<Math>(c, row, c.heads_from(group * LANES), queries + group * query_units, begin + tile,
                        true, partial_at(memory + (group * (wave + 1) + tile + 1) * size));
    };
    const auto merge_group = [&](int64_t group) {
      float* first = memory + group * (wave + 1) * size;
      for (int64_t tile = 0; tile < count; tile++) {
        float* next = first + (tile + 1) * size;
        if (begin + tile == 0)
          std::memcpy(first, next, size_t(size) * sizeof(float));
        else
          merge(c, c.heads_from(group * LANES), partial_at(first), partial_at(next));
      }
      if (begin + count == tiles) finish<typename Math::Cached>(c, row, group * LANES, partial_at(first));
    };
    parallel(threads, Phase(groups * count, attend), Phase(groups, merge_group));
  }
}

template <class Math>
void run(const Context& c, int64_t threads) {
  int64_t tiles = 0, longest = 0;
  for (int64_t row = 0; row < c.rows; row++) {
    if (c.context_lens[row] <= 0) clear<typename Math::Cached>(c, row);
    tiles += c.tiles(row);
    longest = c.tiles(row) > longest ? c.tiles(row) : longest;
  }
  // A row that would keep one thread busy after all others are done is shared out instead.
  if (threads > 1 && longest > 1 && longest * threads > tiles * c.head_groups()) {
    for (int64_t row = 0; row < c.rows; row++)
      if (c.context_lens[row] > 0) attend_row_together<Math>(c, row, threads);
    return;
  }
  if (tiles * c.heads < 8) threads = 1;
  parallel(threads, Phase(c.rows * c.head_groups(), [&](int64_t task) {
    const int64_t row = task / c.head_groups();
    if (c.context_lens[row] > 0) attend_row<Math>(c, row, task % c.head_groups() * LANES);
  }));
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

extern "C" void mla_decode(const void* q_latent, const void* q_rope, const void* cache, int64_t is_bf16,
                           const int32_t* block_tables, const int32_t* context_lens, void* out, int64_t rows,
                           int64_t heads, int64_t latent, int64_t rope, int64_t block_tokens, const int64_t* strides,
                           float scale, int64_t threads) {
  const Context c{q_latent, q_rope, cache, block_tables, context_lens, out, rows, heads, latent, rope, block_tokens,
                  {strides[0], strides[1]}, {strides[2], strides[3]}, {strides[4], strides[5]}, strides[6], scale};
  if (!is_bf16)
    run<FloatMath<float>>(c, threads);
  else if (HAS_BF16_DOT && latent % 2 == 0 && rope % 2 == 0)
    run<Bf16Math>(c, threads);
  else
    run<FloatMath<uint16_t>>(c, threads);
}
