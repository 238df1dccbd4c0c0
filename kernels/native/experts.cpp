// The routed experts of a message in one call: down(silu(gate(x)) * up(x)), weighted and summed per token, exactly.
//
// The bytes of one expert are contiguous: gate and up words, their scales, down words, their scales. Gate and up blocks
// of 16 rows alternate (gate 0..15, up 0..15, gate 16..31, up 16..31, ...). So four blocks give 32 numbers of the inner
// vector, one group of columns of `down`, and the task that computes them packs them for the second product.
#include "products.h"

namespace moonshard {
namespace {

constexpr int64_t TASK_BLOCKS = 4;
constexpr int64_t TASK_ROWS = TASK_BLOCKS * ROWS;  // 64 rows: 32 of gate and 32 of up, or 64 of down
constexpr int64_t WAVE_ROWS = 2048;                // most packed rows in memory at a time

struct Shape {
  int64_t hidden, width;
  int64_t words13() const { return 2 * width * hidden / 2; }
  int64_t scales13() const { return 2 * width * hidden / GROUP * 2; }
  int64_t words2() const { return hidden * width / 2; }
  int64_t scales2() const { return hidden * width / GROUP * 2; }
  int64_t bytes() const { return words13() + scales13() + words2() + scales2(); }
};

Matrix gate_up_of(const uint8_t* expert, const Shape& s) {
  return {expert, reinterpret_cast<const uint16_t*>(expert + s.words13()), s.hidden / GROUP};
}
Matrix down_of(const uint8_t* expert, const Shape& s) {
  const uint8_t* words = expert + s.words13() + s.scales13();
  return {words, reinterpret_cast<const uint16_t*>(words + s.words2()), s.width / GROUP};
}

// The tokens of one expert. `first` is the number of assignments before it in the message, `row` that of packed rows.
template <class Tiling>
struct Job {
  const uint8_t* expert;
  int64_t first, row;
  Tiling tiling;
};

struct Call {
  const uint8_t* const* experts;
  Shape shape;
  const void* x;
  int64_t x_stride;
  const int32_t* ids;
  const float* weights;
  int64_t num_experts, tokens, top_k;
  double* out;
  int64_t threads;
};

// Assignments sorted by expert, and by token within an expert.
template <class Tiling>
struct Sorted {
  int64_t* token;
  float* weight;
  Job<Tiling>* jobs;
  int64_t num_jobs = 0;
};

struct SortedTokens;
struct SortedWeights;
struct SortedJobs;
struct ExpertStarts;
struct PackedInputs;
struct PackedInner;
struct ExpertSums;

template <class Tiling>
Sorted<Tiling> sort_by_expert(const Call& c) {
  const int64_t pairs = c.tokens * c.top_k;
  int64_t* start = scratch<ExpertStarts, int64_t>(c.num_experts + 1);
  Sorted<Tiling> s{scratch<SortedTokens, int64_t>(pairs), scratch<SortedWeights, float>(pairs),
                   scratch<SortedJobs, Job<Tiling>>(c.num_experts), 0};
  int64_t row = 0;
  for (int64_t e = 0; e <= c.num_experts; e++) start[e] = 0;
  const auto local = [&](int64_t i) { return c.ids[i] >= 0 && c.ids[i] < c.num_experts; };
  for (int64_t i = 0; i < pairs; i++)
    if (local(i)) start[c.ids[i] + 1]++;
  for (int64_t e = 0; e < c.num_experts; e++) {
    if (start[e + 1] > 0) {
      s.jobs[s.num_jobs] = {c.experts[e], start[e], row, Tiling(start[e + 1])};
      row += s.jobs[s.num_jobs++].tiling.rows();
    }
    start[e + 1] += start[e];
  }
  for (int64_t i = 0; i < pairs; i++)
    if (local(i)) {
      const int64_t to = start[c.ids[i]]++;
      s.token[to] = i / c.top_k;
      s.weight[to] = c.weights[i];
    }
  return s;
}

// Rounds the inner vector to the dtype of the run.
inline F16 as_activation(F16 v, const float*) { return v; }
inline F16 as_activation(F16 v, const uint16_t*) {
  uint16_t rounded[16];
  store(rounded, v);
  return load(rounded);
}

// A number whose last bit is the step of the grid that terms are rounded to (kernels/grid.py).
constexpr double rounder(const float*) { return 0x1.8p18; }
constexpr double rounder(const uint16_t*) { return 0x1.8p30; }

template <class Product, class X>
struct Wave {
  using Unit = typename Product::Unit;
  using Tiling = typename Product::Tiling;
  const Call& call;
  const Sorted<Tiling>& sorted;
  int64_t begin, end, first_row;  // jobs of this wave, its first packed row
  Unit* inputs;                   // [rows, hidden] packed by tiles
  Unit* inner;                    // [rows, width] packed by the same tiles

  Unit* inputs_of(const Job<Tiling>& job) const {
    return inputs + (job.row - first_row) * Product::row_units(call.shape.hidden);
  }
  Unit* inner_of(const Job<Tiling>& job) const {
    return inner + (job.row - first_row) * Product::row_units(call.shape.width);
  }

  void pack(int64_t task) const {
    int64_t j = begin;
    while (task >= sorted.jobs[j].tiling.tiles) task -= sorted.jobs[j++].tiling.tiles;
    const Job<Tiling>& job = sorted.jobs[j];
    const int64_t* token = sorted.token + job.first;
    const auto row = [&](int64_t m) { return static_cast<const X*>(call.x) + token[m] * call.x_stride; };
    Product::template pack<X>(row, job.tiling, task, call.shape.hidden, inputs_of(job));
  }

  // Computes 32 numbers of the inner vector of every token of one expert.
  void gate_up(int64_t task) const {
    const int64_t chunks = call.shape.width / GROUP, chunk = task % chunks;
    const Job<Tiling>& job = sorted.jobs[begin + task / chunks];
    const Tiling& tiling = job.tiling;
    float* sums = scratch<ExpertSums, float>(tiling.rows() * TASK_ROWS);
    Product::multiply(gate_up_of(job.expert, call.shape), chunk * TASK_BLOCKS, TASK_BLOCKS, inputs_of(job), tiling, 0,
                      tiling.tiles, sums, TASK_ROWS);
    for (int64_t tile = 0; tile < tiling.tiles; tile++)
      for (int64_t m = 0; m < tiling.rows_of(tile); m++) {
        const float* from = sums + (tiling.first_row(tile) + m) * TASK_ROWS;
        float value[GROUP];
        for (int64_t half = 0; half < 2; half++) {
          const F16 gate = load(from + half * 32), up = load(from + half * 32 + 16);
          store(value + half * 16, as_activation(mul(silu(gate), up), static_cast<const X*>(nullptr)));
        }
        Product::put_group(value, tiling, tile, m, chunk, call.shape.width, inner_of(job));
      }
  }

  // Computes 64 columns of the output for every token.
  void down(int64_t task) const {
    const int64_t blocks = call.shape.hidden / ROWS, block = task * TASK_BLOCKS;
    const int64_t here = block + TASK_BLOCKS < blocks ? TASK_BLOCKS : blocks - block;
    if (begin == 0)
      for (int64_t t = 0; t < call.tokens; t++)
        for (int64_t i = 0; i < here * ROWS; i++) call.out[t * call.shape.hidden + block * ROWS + i] = 0;
    for (int64_t j = begin; j < end; j++) {
      const Job<Tiling>& job = sorted.jobs[j];
      const Tiling& tiling = job.tiling;
      float* sums = scratch<ExpertSums, float>(tiling.rows() * TASK_ROWS);
      Product::multiply(down_of(job.expert, call.shape), block, here, inner_of(job), tiling, 0, tiling.tiles, sums,
                        TASK_ROWS);
      for (int64_t m = 0; m < tiling.tokens; m++) {
        const double weight = sorted.weight[job.first + m];
        double* to = call.out + sorted.token[job.first + m] * call.shape.hidden + block * ROWS;
        for (int64_t i = 0; i < here; i++)
          add_on_grid(to + i * ROWS, weight, load(sums + m * TASK_ROWS + i * ROWS), rounder(static_cast<const X*>(nullptr)));
      }
    }
  }
};

template <class Product, class X>
void run(const Call& c) {
  using Tiling = typename Product::Tiling;
  using Unit = typename Product::Unit;
  const Sorted<Tiling> sorted = sort_by_expert<Tiling>(c);
  int64_t begin = 0;
  do {
    int64_t end = begin, rows = 0, tiles = 0;
    while (end < sorted.num_jobs && (end == begin || rows + sorted.jobs[end].tiling.rows() <= WAVE_ROWS)) {
      rows += sorted.jobs[end].tiling.rows();
      tiles += sorted.jobs[end++].tiling.tiles;
    }
    Wave<Product, X> wave{c, sorted, begin, end, begin < end ? sorted.jobs[begin].row : 0, nullptr, nullptr};
    wave.inputs = scratch<PackedInputs, Unit>(rows * Product::row_units(c.shape.hidden));
    wave.inner = scratch<PackedInner, Unit>(rows * Product::row_units(c.shape.width));
    parallel(c.threads,  //
             Phase(tiles, [&](int64_t task) { wave.pack(task); }),
             Phase((end - begin) * (c.shape.width / GROUP), [&](int64_t task) { wave.gate_up(task); }),
             Phase((c.shape.hidden + TASK_ROWS - 1) / TASK_ROWS, [&](int64_t task) { wave.down(task); }));
    begin = end;
  } while (begin < sorted.num_jobs);
}

// Reorders a word: the checkpoint has column 8 w + j in bits 4 j to 4 j + 3; here the even columns are in the low half.
inline uint32_t even_then_odd(uint32_t word) {
  const auto squeeze = [](uint32_t v) {
    v &= 0x0F0F0F0F;
    v = (v | v >> 4) & 0x00FF00FF;
    return (v | v >> 8) & 0xFFFF;
  };
  return squeeze(word) | squeeze(word >> 4) << 16;
}

// Packs one block: rows [row, row + 16) of a checkpoint matrix.
void pack_block(const uint32_t* packed, const uint16_t* scale, int64_t row, int64_t columns, uint32_t* words,
                uint16_t* scales) {
  for (int64_t r = 0; r < ROWS; r++) {
    const uint32_t* from = packed + (row + r) * (columns / 8);
    for (int64_t w = 0; w < columns / 8; w++) words[w * ROWS + r] = even_then_odd(from[w]);
    for (int64_t g = 0; g < columns / GROUP; g++) scales[g * ROWS + r] = scale[(row + r) * (columns / GROUP) + g];
  }
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

extern "C" {

int64_t expert_bytes(int64_t hidden, int64_t width) { return Shape{hidden, width}.bytes(); }

// Packs one expert of the checkpoint into expert_bytes(hidden, width) bytes.
void pack_expert(const uint32_t* gate, const uint16_t* gate_scale, const uint32_t* up, const uint16_t* up_scale,
                 const uint32_t* down, const uint16_t* down_scale, int64_t hidden, int64_t width, uint8_t* out,
                 int64_t threads) {
  const Shape s{hidden, width};
  uint32_t* words13 = reinterpret_cast<uint32_t*>(out);
  uint16_t* scales13 = reinterpret_cast<uint16_t*>(out + s.words13());
  uint32_t* words2 = reinterpret_cast<uint32_t*>(out + s.words13() + s.scales13());
  uint16_t* scales2 = reinterpret_cast<uint16_t*>(out + s.words13() + s.scales13() + s.words2());
  const int64_t blocks13 = 2 * width / ROWS, words_per_block13 = hidden / 8 * ROWS, words_per_block2 = width / 8 * ROWS;
  parallel(threads, Phase(blocks13 + hidden / ROWS, [&](int64_t task) {
    if (task < blocks13)
      pack_block(task % 2 ? up : gate, task % 2 ? up_scale : gate_scale, task / 2 * ROWS, hidden,
                 words13 + task * words_per_block13, scales13 + task * hidden / GROUP * ROWS);
    else
      pack_block(down, down_scale, (task - blocks13) * ROWS, width, words2 + (task - blocks13) * words_per_block2,
                 scales2 + (task - blocks13) * width / GROUP * ROWS);
  }));
}

void expert_mlp(const uint8_t* const* experts, int64_t num_experts, int64_t hidden, int64_t width, const void* x,
                int64_t x_is_bf16, int64_t x_stride, const int32_t* ids, const float* weights, int64_t tokens,
                int64_t top_k, double* out, int64_t threads) {
  const Call call{experts, {hidden, width}, x, x_stride, ids, weights, num_experts, tokens, top_k, out, threads};
  if (x_is_bf16)
    run<Int4Product, uint16_t>(call);
  else
    run<Vectors<Int4F32>, float>(call);
}

}  // extern "C"
