// y = x W^T for bf16 weights: packing, and the product with one weight (linear) or one per head (head_linear).
#include "operations.h"
#include "products.h"

namespace moonshard {
namespace {

// A batch of equal products. Strides count elements.
struct Products {
  const uint8_t* words;  // [batch, row blocks, steps, 64 bytes]
  const void* x;         // [tokens, batch, in]
  void* y;               // [tokens, batch, out]
  int64_t batch, tokens, in, out;
  int64_t x_token_stride, x_batch_stride, y_token_stride, y_batch_stride;
};

constexpr int64_t SMALL_WORK = int64_t(1) << 15; // with fewer multiplications a second thread costs more than it saves

struct PackedTokens;
struct TaskSums;

template <class Product, class X, class Y>
void run(const Products& p, int64_t threads) {
  using Unit = typename Product::Unit;
  using Weights = typename Product::Weights;
  const int64_t steps = (p.in + Weights::COLUMNS - 1) / Weights::COLUMNS, row_blocks = (p.out + ROWS - 1) / ROWS;
  const typename Product::Tiling tiling(p.tokens);
  const int64_t item_units = tiling.rows() * Product::row_units(p.in);
  Unit* packed = scratch<PackedTokens, Unit>(p.batch * item_units);

  const auto pack = [&](int64_t task) {
    const int64_t item = task / tiling.tiles, tile = task % tiling.tiles;
    const X* from = static_cast<const X*>(p.x) + item * p.x_batch_stride;
    Product::template pack<X>([&](int64_t m) { return from + m * p.x_token_stride; }, tiling, tile, p.in,
                              packed + item * item_units);
  };

  const int64_t task_blocks = Product::task_blocks(row_blocks * p.batch, tiling.tiles, threads);
  const int64_t row_tasks = (row_blocks + task_blocks - 1) / task_blocks;
  const int64_t token_tasks = (tiling.tiles + Product::TASK_TILES - 1) / Product::TASK_TILES;
  const auto compute = [&](int64_t task) {
    const int64_t rows = task % row_tasks, tile_task = task / row_tasks % token_tasks;
    const int64_t item = task / (row_tasks * token_tasks);
    const int64_t first = tiling.tiles * tile_task / token_tasks, last = tiling.tiles * (tile_task + 1) / token_tasks;
    const int64_t block = rows * task_blocks;
    const int64_t blocks = block + task_blocks < row_blocks ? task_blocks : row_blocks - block;
    const int64_t begin = tiling.begin(first), tokens = tiling.begin(last) - begin, width = blocks * ROWS;
    float* sums = scratch<TaskSums, float>((tiling.first_row(last) - tiling.first_row(first)) * width);
    Matrix w;
    w.words = p.words + item * row_blocks * steps * Weights::WORD_BYTES;
    w.steps = steps;
    Product::multiply(w, block, blocks, packed + item * item_units, tiling, first, last, sums, width);
    const int64_t kept = block * ROWS + width < p.out ? width : p.out - block * ROWS;
    for (int64_t m = 0; m < tokens; m++) {
      Y* to = static_cast<Y*>(p.y) + (begin + m) * p.y_token_stride + item * p.y_batch_stride + block * ROWS;
      int64_t i = 0;
      for (; i + 16 <= kept; i += 16) store(to + i, load(sums + m * width + i));
      for (; i < kept; i++) round_to(to + i, sums[m * width + i]);
    }
  };

  if (p.batch * p.tokens * p.in * p.out < SMALL_WORK) threads = 1;
  const int64_t packing_threads = p.batch * p.tokens * p.in < SMALL_WORK ? 1 : threads;
  const int64_t num_tasks = p.batch * token_tasks * row_tasks;
  if (packing_threads == 1) {
    parallel(1, Phase(p.batch * tiling.tiles, pack));
    parallel(threads, Phase(num_tasks, compute));
  } else {
    parallel(threads, Phase(p.batch * tiling.tiles, pack), Phase(num_tasks, compute));
  }
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

extern "C" {

// Whether the system permits the instructions of this library: Linux grants the tile unit only on request.
int64_t permitted() {
#ifdef MOONSHARD_AMX
  return tiles_permitted();
#else
  return true;
#endif
}

int64_t packed_linear_bytes(int64_t out, int64_t in) { return (out + ROWS - 1) / ROWS * ((in + 1) / 2) * 64; }

// Packs weight [out, in] bf16, rows row_stride elements apart; pads rows and columns with zeros.
void pack_linear(const uint16_t* weight, int64_t row_stride, int64_t out, int64_t in, uint16_t* packed,
                 int64_t threads) {
  const int64_t steps = (in + 1) / 2, row_blocks = (out + ROWS - 1) / ROWS;
  parallel(threads, Phase(row_blocks, [&](int64_t block) {
    uint16_t* to = packed + block * steps * 2 * ROWS;
    for (int64_t row = 0; row < ROWS; row++) {
      const int64_t source = block * ROWS + row;
      for (int64_t k = 0; k < 2 * steps; k++)
        to[(k / 2 * ROWS + row) * 2 + k % 2] = source < out && k < in ? weight[source * row_stride + k] : 0;
    }
  }));
}

void linear(const uint8_t* words, const void* x, int64_t x_is_bf16, void* y, int64_t y_is_bf16, int64_t batch,
            int64_t tokens, int64_t in, int64_t out, int64_t x_token_stride, int64_t x_batch_stride,
            int64_t y_token_stride, int64_t y_batch_stride, int64_t threads) {
  const Products p{words, x,   y,   batch, tokens, in, out, x_token_stride, x_batch_stride, y_token_stride,
                   y_batch_stride};
  if (tokens == 0 || out == 0 || batch == 0) return;
  if (x_is_bf16 && y_is_bf16)
    run<DenseProduct, uint16_t, uint16_t>(p, threads);
  else if (x_is_bf16)
    run<DenseProduct, uint16_t, float>(p, threads);
  else if (y_is_bf16)
    run<Vectors<DenseF32>, float, uint16_t>(p, threads);
  else
    run<Vectors<DenseF32>, float, float>(p, threads);
}

}  // extern "C"
