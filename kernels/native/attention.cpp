// Absorbed MLA attention of one query token per row over the paged latent KV cache.
//
// A context is cut into tiles of TILE_TOKENS positions, counted from its start. Each tile gives a partial result with
// its own maximum; partials are merged in the order of the tiles. Nothing in this depends on the other rows, on the
// number of threads or on whether the tiles of a row were computed by one thread or by several.
//
// Heads stand in the lanes, sixteen at a time: the scores of a tile are tokens times (queries as weights), its result is
// (softmax weights as tokens) times the latents.
#include "parallel.h"
#include "simd.h"

namespace moonshard {
namespace {

constexpr int64_t TILE_TOKENS = 64;
constexpr int64_t LANES = 16;

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
};

// What is known of sixteen heads after some tiles.
struct Partial {
  float* sums;     // [16 heads, latent], relative to the maximum
  float* maximum;  // [16]
  float* weight;   // [16], sum of the softmax weights
};

// out[m][lane] += sum over k of x[m * x_token + k * x_step] * w[k * w_step + lane]
template <int M, int R>
void tile_product(const float* x, int64_t x_token, int64_t x_step, const float* w, int64_t w_step, int64_t steps,
                  F16 (&sums)[M][R]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sums[m][r] = zeros();
  for (int64_t k = 0; k < steps; k++, x += x_step, w += w_step)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const F16 weight = load(w + r * LANES);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) sums[m][r] = fma(splat(x[m * x_token]), weight, sums[m][r]);
    }
}

// Queries of sixteen heads, one head per lane and scaled: [width][16]. Lanes past the last head are zero.
template <class T>
void pack_queries(const Context& c, int64_t row, int64_t first_head, float* out) {
  for (int64_t lane = 0; lane < LANES; lane++) {
    const int64_t head = first_head + lane;
    const bool real = head < c.heads;
    const int64_t at = real ? head : 0;
    const T* latent = static_cast<const T*>(c.q_latent) + row * c.q_latent_strides[0] + at * c.q_latent_strides[1];
    const T* rope = static_cast<const T*>(c.q_rope) + row * c.q_rope_strides[0] + at * c.q_rope_strides[1];
    for (int64_t d = 0; d < c.latent; d++) out[d * LANES + lane] = real ? widen(latent[d]) * c.scale : 0.0f;
    for (int64_t d = 0; d < c.rope; d++) out[(c.latent + d) * LANES + lane] = real ? widen(rope[d]) * c.scale : 0.0f;
  }
}

// The tokens of a tile in float32, [tokens][width].
template <class T>
void read_tokens(const Context& c, int64_t row, int64_t begin, int64_t tokens, float* out) {
  const int32_t* table = c.block_tables + row * c.table_stride;
  for (int64_t t = 0; t < tokens; t++) {
    const int64_t position = begin + t;
    const T* from = static_cast<const T*>(c.cache) + table[position / c.block_tokens] * c.cache_strides[0] +
                    position % c.block_tokens * c.cache_strides[1];
    float* to = out + t * c.width();
    int64_t d = 0;
    for (; d + LANES <= c.width(); d += LANES) store(to + d, load(from + d));
    for (; d < c.width(); d++) to[d] = widen(from[d]);
  }
}

template <int M>
void score_tokens(const float* tokens, int64_t width, const float* queries, float* scores) {
  F16 sums[M][1];
  tile_product<M, 1>(tokens, width, 1, queries, LANES, width, sums);
  for (int m = 0; m < M; m++) store(scores + m * LANES, sums[m][0]);
}

// scores [tokens][16] -> softmax weights relative to the maximum, which is returned with their sum.
void softmax(float* scores, int64_t tokens, float* maximum, float* weight) {
  F16 top = load(scores), total = zeros();
  for (int64_t t = 1; t < tokens; t++) top = max(top, load(scores + t * LANES));
  for (int64_t t = 0; t < tokens; t++) {
    const F16 e = exp(sub(load(scores + t * LANES), top));
    total = add(total, e);
    store(scores + t * LANES, e);
  }
  store(maximum, top);
  store(weight, total);
}

// sums [16][latent] = weights^T tokens, M heads and LANES latents at a time
template <int M>
void weigh_tokens(const float* weights, const float* tokens, int64_t num_tokens, int64_t width, int64_t latent,
                  float* sums) {
  int64_t d = 0;
  for (; d + LANES <= latent; d += LANES) {
    F16 acc[M][1];
    tile_product<M, 1>(weights, 1, LANES, tokens + d, width, num_tokens, acc);
    for (int m = 0; m < M; m++) store(sums + m * latent + d, acc[m][0]);
  }
  for (; d < latent; d++)
    for (int m = 0; m < M; m++) {
      float acc = 0;
      for (int64_t t = 0; t < num_tokens; t++) acc = __builtin_fmaf(weights[t * LANES + m], tokens[t * width + d], acc);
      sums[m * latent + d] = acc;
    }
}

struct TileTokens;
struct TileScores;

template <class T>
void attend_tile(const Context& c, int64_t row, const float* queries, int64_t tile, Partial p) {
  const int64_t begin = tile * TILE_TOKENS, left = c.context_lens[row] - begin, width = c.width();
  const int64_t tokens = left < TILE_TOKENS ? left : TILE_TOKENS;
  float* values = scratch<TileTokens, float>(TILE_TOKENS * width);
  float* scores = scratch<TileScores, float>(TILE_TOKENS * LANES);
  read_tokens<T>(c, row, begin, tokens, values);
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) score_tokens<4>(values + t * width, width, queries, scores + t * LANES);
  for (; t < tokens; t++) score_tokens<1>(values + t * width, width, queries, scores + t * LANES);
  softmax(scores, tokens, p.maximum, p.weight);
  for (int64_t head = 0; head < LANES; head += 4)
    weigh_tokens<4>(scores + head, values, tokens, width, c.latent, p.sums + head * c.latent);
}

// total += next, both relative to the new maximum
void merge(const Context& c, Partial total, const Partial& next) {
  float old_scale[LANES], new_scale[LANES];
  const F16 top = max(load(total.maximum), load(next.maximum));
  const F16 keep = exp(sub(load(total.maximum), top)), take = exp(sub(load(next.maximum), top));
  store(old_scale, keep);
  store(new_scale, take);
  store(total.weight, fma(load(total.weight), keep, mul(load(next.weight), take)));
  store(total.maximum, top);
  for (int64_t head = 0; head < LANES; head++) {
    float *to = total.sums + head * c.latent, a = old_scale[head], b = new_scale[head];
    const float* from = next.sums + head * c.latent;
    for (int64_t d = 0; d < c.latent; d++) to[d] = __builtin_fmaf(to[d], a, from[d] * b);
  }
}

template <class T>
void finish(const Context& c, int64_t row, int64_t first_head, const Partial& p) {
  for (int64_t lane = 0; lane < LANES && first_head + lane < c.heads; lane++) {
    T* out = static_cast<T*>(c.out) + (row * c.heads + first_head + lane) * c.latent;
    const float* from = p.sums + lane * c.latent;
    for (int64_t d = 0; d < c.latent; d++) round_to(out + d, from[d] / p.weight[lane]);
  }
}

Partial partial_at(float* memory) {
  return {memory + 2 * LANES, memory, memory + LANES};
}
int64_t partial_size(const Context& c) { return LANES * (c.latent + 2); }

struct Queries;
struct RowPartials;
struct SharedQueries;
struct SharedPartials;

template <class T>
void clear(const Context& c, int64_t row, int64_t first_head) {
  for (int64_t lane = 0; lane < LANES && first_head + lane < c.heads; lane++)
    for (int64_t d = 0; d < c.latent; d++)
      round_to(static_cast<T*>(c.out) + (row * c.heads + first_head + lane) * c.latent + d, 0.0f);
}

// All tiles of one row and sixteen heads on this thread.
template <class T>
void attend_row(const Context& c, int64_t row, int64_t first_head) {
  if (c.context_lens[row] <= 0) return clear<T>(c, row, first_head);
  float* queries = scratch<Queries, float>(c.width() * LANES);
  float* memory = scratch<RowPartials, float>(2 * partial_size(c));
  const Partial total = partial_at(memory), next = partial_at(memory + partial_size(c));
  pack_queries<T>(c, row, first_head, queries);
  attend_tile<T>(c, row, queries, 0, total);
  for (int64_t tile = 1; tile < c.tiles(row); tile++) {
    attend_tile<T>(c, row, queries, tile, next);
    merge(c, total, next);
  }
  finish<T>(c, row, first_head, total);
}

// The same with the tiles of a wave shared out; the team merges them in order, one thread per sixteen heads.
template <class T>
void attend_row_together(const Context& c, int64_t row, int64_t threads) {
  const int64_t groups = c.head_groups(), tiles = c.tiles(row), size = partial_size(c);
  const int64_t wave = 4 * threads;  // bounds the memory for partials of a long context
  float* queries = scratch<SharedQueries, float>(groups * c.width() * LANES);
  float* memory = scratch<SharedPartials, float>(groups * (wave + 1) * size);
  for (int64_t group = 0; group < groups; group++)
    pack_queries<T>(c, row, group * LANES, queries + group * c.width() * LANES);
  for (int64_t begin = 0; begin < tiles; begin += wave) {
    const int64_t count = begin + wave < tiles ? wave : tiles - begin;
    Tasks attending(groups * count), merging(groups);
    parallel(threads, [&] {
      attending.run([&](int64_t task) {
        const int64_t group = task % groups, tile = task / groups;
        attend_tile<T>(c, row, queries + group * c.width() * LANES, begin + tile,
                       partial_at(memory + (group * (wave + 1) + tile + 1) * size));
      });
      barrier();
      merging.run([&](int64_t group) {
        float* first = memory + group * (wave + 1) * size;
        for (int64_t tile = 0; tile < count; tile++) {
          float* next = first + (tile + 1) * size;
          if (begin + tile == 0)
            for (int64_t i = 0; i < size; i++) first[i] = next[i];
          else
            merge(c, partial_at(first), partial_at(next));
        }
        if (begin + count == tiles) finish<T>(c, row, group * LANES, partial_at(first));
      });
    });
  }
}

template <class T>
void run(const Context& c, int64_t threads) {
  int64_t tiles = 0, longest = 0;
  for (int64_t row = 0; row < c.rows; row++) {
    tiles += c.tiles(row);
    longest = c.tiles(row) > longest ? c.tiles(row) : longest;
  }
  // One row that would keep a thread busy after all others are done is shared out instead.
  const bool together = threads > 1 && longest > 1 && longest * threads > tiles * c.head_groups();
  if (together) {
    for (int64_t row = 0; row < c.rows; row++) {
      if (c.context_lens[row] > 0)
        attend_row_together<T>(c, row, threads);
      else
        for (int64_t group = 0; group < c.head_groups(); group++) clear<T>(c, row, group * LANES);
    }
    return;
  }
  Tasks tasks(c.rows * c.head_groups());
  parallel(threads, [&] {
    tasks.run([&](int64_t task) {
      attend_row<T>(c, task / c.head_groups(), task % c.head_groups() * LANES);
    });
  });
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
  if (is_bf16)
    run<uint16_t>(c, threads);
  else
    run<float>(c, threads);
}
