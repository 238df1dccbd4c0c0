// Absorbed MLA attention of one query token per row over the paged latent KV cache.
//
// A context is cut into tiles of TILE_TOKENS positions, counted from its start. Each tile gives a partial result with
// its own maximum; partials are merged in the order of the tiles. So a result depends neither on the other rows nor on
// the number of threads that compute the tiles of its row.
//
// All heads of a row share the latents, so a tile of them is read once. Its scores are a product of the tokens with the
// queries of all heads, heads in the lanes; its result is a product of the transposed softmax weights with the latents.
// `Math` defines the number format and both products.
#ifdef MOONSHARD_AMX
#include "amx/attention.h"
#endif
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
  int64_t lanes() const { return up_to(heads, LANES); }
  int64_t wide() const { return up_to(latent, CHUNK); }
  int64_t tiles(int64_t row) const { return (int64_t(context_lens[row]) + TILE_TOKENS - 1) / TILE_TOKENS; }
};

// Softmax state of all heads of a row after some tiles.
struct Partial {
  float* maximum;  // [lanes]
  float* weight;   // [lanes], sum of the softmax weights
  float* sums;     // [lanes, wide], relative to the maximum
};
Partial partial_at(const Context& c, float* memory) { return {memory, memory + c.lanes(), memory + 2 * c.lanes()}; }
int64_t partial_size(const Context& c) { return c.lanes() * (c.wide() + 2); }

// Packs the queries of a row as weights. Lanes past the last head and columns past the last are zero.
template <class Math>
int64_t query_units(const Context& c) {
  return Math::units(c.width()) * c.lanes();
}
template <class Math>
void pack_queries(const Context& c, int64_t row, typename Math::Unit* out) {
  using T = typename Math::Cached;
  std::memset(out, 0, size_t(query_units<Math>(c)) * sizeof(*out));
  for (int64_t head = 0; head < c.heads; head++) {
    const T* latent = static_cast<const T*>(c.q_latent) + row * c.q_latent_strides[0] + head * c.q_latent_strides[1];
    const T* rope = static_cast<const T*>(c.q_rope) + row * c.q_rope_strides[0] + head * c.q_rope_strides[1];
    Math::put(latent, 0, c.latent, head, c.lanes(), out);
    Math::put(rope, c.latent, c.rope, head, c.lanes(), out);
  }
}

struct TileTokens;
struct TileScores;
struct TileMaximum;

// The tokens of a tile: in place if one block holds all of them in the layout of the products, else a copy.
template <class Math>
Tokens<typename Math::Unit> read_tokens(const Context& c, int64_t row, int64_t begin, int64_t tokens) {
  using T = typename Math::Cached;
  using Unit = typename Math::Unit;
  const int32_t* table = c.block_tables + row * c.table_stride;
  const auto at = [&](int64_t position) {
    return static_cast<const T*>(c.cache) + table[position / c.block_tokens] * c.cache_strides[0] +
           position % c.block_tokens * c.cache_strides[1];
  };
  const bool one_block = begin / c.block_tokens == (begin + tokens - 1) / c.block_tokens;
  if (one_block && Math::as_cached(tokens, c.width(), c.cache_strides[1])) {
    const int64_t next = begin + TILE_TOKENS < c.context_lens[row] ? begin + TILE_TOKENS : begin;
    return {reinterpret_cast<const Unit*>(at(begin)), c.cache_strides[1] * int64_t(sizeof(T)) / int64_t(sizeof(Unit)),
            reinterpret_cast<const Unit*>(at(next))};
  }
  const int64_t units = Math::units(c.width());
  Unit* memory = scratch<TileTokens, Unit>(TILE_TOKENS * units);
  if (sizeof(Unit) != sizeof(T)) std::memset(memory, 0, size_t(TILE_TOKENS * units) * sizeof(Unit));
  for (int64_t t = 0; t < tokens; t++) Math::read(at(begin + t), c.width(), memory + t * units);
  return {memory, units, nullptr};
}

// Moves `total` to the larger of both maxima, for sixteen heads. `keep` and `take` are the factors of old and new sums.
void join_weights(const Partial& total, const Partial& next, int64_t lane, float* keep, float* take) {
  const F16 before = load(total.maximum + lane), now = load(next.maximum + lane), top = max(before, now);
  const F16 kept = exp(sub(before, top)), taken = exp(sub(now, top));
  store(keep + lane, kept);
  store(take + lane, taken);
  store(total.weight + lane, fma(load(total.weight + lane), kept, mul(load(next.weight + lane), taken)));
  store(total.maximum + lane, top);
}

struct MergeFactors;

// Merges heads [first, first + count) of a later partial into an earlier one.
void merge(const Context& c, int64_t first, int64_t count, const Partial& total, const Partial& next) {
  float* keep = scratch<MergeFactors, float>(2 * c.lanes());
  float* take = keep + c.lanes();
  join_weights(total, next, first, keep, take);
  for (int64_t head = first; head < first + count; head++) {
    float* to = total.sums + head * c.wide();
    const float* from = next.sums + head * c.wide();
    const float a = keep[head], b = take[head];
    for (int64_t d = 0; d < c.latent; d++) to[d] = __builtin_fmaf(to[d], a, from[d] * b);
  }
}

// Turns scores into softmax weights of this tile alone, for sixteen heads, with their maximum and sum.
template <class Math>
void soften(const Context& c, int64_t tokens, float* scores, float* maximum, float* weight) {
  const int64_t lanes = c.lanes();
  F16 top = mul(load(scores), splat(c.scale)), total = zeros();
  for (int64_t t = 0; t < tokens; t++) {
    const F16 score = mul(load(scores + t * lanes), splat(c.scale));
    store(scores + t * lanes, score);
    top = t == 0 ? score : max(top, score);
  }
  for (int64_t t = 0; t < tokens; t++) {
    const F16 part = Math::rounded(exp(sub(load(scores + t * lanes), top)));
    total = add(total, part);
    store(scores + t * lanes, part);
  }
  store(maximum, top);
  store(weight, total);
}

// Computes one tile of a row. The first tile becomes `p`; later ones are merged into it with the arithmetic of `merge`.
template <class Math>
void attend_tile(const Context& c, int64_t row, const typename Math::Unit* queries, int64_t tile, bool first,
                 const Partial& p) {
  const int64_t begin = tile * TILE_TOKENS, left = c.context_lens[row] - begin, lanes = c.lanes();
  const int64_t tokens = left < TILE_TOKENS ? left : TILE_TOKENS;
  float* scores = scratch<TileScores, float>(TILE_TOKENS * lanes);
  float* fresh = scratch<TileMaximum, float>(4 * lanes);
  float *const keep = fresh + 2 * lanes, *const take = fresh + 3 * lanes;
  const Partial next = first ? p : Partial{fresh, fresh + lanes, nullptr};
  const auto keys = read_tokens<Math>(c, row, begin, tokens);
  Math::score(keys, Math::units(c.width()), tokens, queries, lanes, scores);
  for (int64_t lane = 0; lane < lanes; lane += LANES) {
    soften<Math>(c, tokens, scores + lane, next.maximum + lane, next.weight + lane);
    if (!first) join_weights(p, next, lane, keep, take);
  }
  Math::weigh(scores, keys, tokens, c.latent, c.heads, lanes, p.sums, c.wide(),
              first ? Joining{} : Joining{keep, take});
}

template <class T>
void finish(const Context& c, int64_t row, int64_t first, int64_t count, const Partial& p) {
  for (int64_t head = first; head < first + count; head++) {
    T* out = static_cast<T*>(c.out) + (row * c.heads + head) * c.latent;
    const float* from = p.sums + head * c.wide();
    int64_t d = 0;
    for (; d + LANES <= c.latent; d += LANES) store(out + d, div(load(from + d), splat(p.weight[head])));
    for (; d < c.latent; d++) round_to(out + d, from[d] / p.weight[head]);
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

// Computes all tiles of one row on this thread.
template <class Math>
void attend_row(const Context& c, int64_t row) {
  auto* queries = scratch<Queries, typename Math::Unit>(query_units<Math>(c));
  const Partial total = partial_at(c, scratch<RowPartials, float>(partial_size(c)));
  pack_queries<Math>(c, row, queries);
  for (int64_t tile = 0; tile < c.tiles(row); tile++) attend_tile<Math>(c, row, queries, tile, tile == 0, total);
  finish<typename Math::Cached>(c, row, 0, c.heads, total);
}

// Computes one row on several threads: they share the tiles of a wave, then merge its partials in order, each thread for
// sixteen heads.
template <class Math>
void attend_row_together(const Context& c, int64_t row, int64_t threads) {
  const int64_t tiles = c.tiles(row), size = partial_size(c);
  const int64_t wave = 4 * threads;  // bounds the memory for the partials of a long context
  auto* queries = scratch<SharedQueries, typename Math::Unit>(query_units<Math>(c));
  float* memory = scratch<SharedPartials, float>((wave + 1) * size);
  const Partial total = partial_at(c, memory);
  pack_queries<Math>(c, row, queries);
  for (int64_t begin = 0; begin < tiles; begin += wave) {
    const int64_t count = begin + wave < tiles ? wave : tiles - begin;
    // The first tile of the context becomes the total.
    const auto place = [&](int64_t tile) {
      return begin + tile == 0 ? total : partial_at(c, memory + (tile + 1) * size);
    };
    const auto attend = [&](int64_t tile) { attend_tile<Math>(c, row, queries, begin + tile, true, place(tile)); };
    const auto merge_heads = [&](int64_t group) {
      const int64_t first = group * LANES, heads = c.heads - first < LANES ? c.heads - first : LANES;
      for (int64_t tile = begin == 0 ? 1 : 0; tile < count; tile++) merge(c, first, heads, total, place(tile));
      if (begin + count == tiles) finish<typename Math::Cached>(c, row, first, heads, total);
    };
    parallel(threads, Phase(count, attend), Phase(c.lanes() / LANES, merge_heads));
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
  // Threads share a row that would otherwise keep one of them busy after all others are done.
  if (threads > 1 && longest > 1 && longest * threads > tiles) {
    for (int64_t row = 0; row < c.rows; row++)
      if (c.context_lens[row] > 0) attend_row_together<Math>(c, row, threads);
    return;
  }
  if (tiles * c.heads < 8) threads = 1;
  parallel(threads, Phase(c.rows, [&](int64_t row) {
    if (c.context_lens[row] > 0) attend_row<Math>(c, row);
  }));
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

#ifdef MOONSHARD_AMX
using DecodeMath = TileMath;
#elif defined(MOONSHARD_BF16_DOT)
using DecodeMath = Bf16Math;
#endif

extern "C" void mla_decode(const void* q_latent, const void* q_rope, const void* cache, int64_t is_bf16,
                           const int32_t* block_tables, const int32_t* context_lens, void* out, int64_t rows,
                           int64_t heads, int64_t latent, int64_t rope, int64_t block_tokens, const int64_t* strides,
                           float scale, int64_t threads) {
  const Context c{q_latent, q_rope, cache, block_tables, context_lens, out, rows, heads, latent, rope, block_tokens,
                  {strides[0], strides[1]}, {strides[2], strides[3]}, {strides[4], strides[5]}, strides[6], scale};
  if (!is_bf16)
    run<FloatMath<float>>(c, threads);
#ifdef MOONSHARD_BF16_DOT
  else if (latent % 2 == 0 && rope % 2 == 0)
    run<DecodeMath>(c, threads);
#endif
  else
    run<FloatMath<uint16_t>>(c, threads);
}
