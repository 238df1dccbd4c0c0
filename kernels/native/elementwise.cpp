// Operations that read each number once: norms, SwiGLU, rotary embedding, cache writes. Each is one pass over memory.
#include <cmath>

#include "operations.h"
#include "parallel.h"
#include "simd.h"

namespace moonshard {
namespace {

constexpr int64_t LANES = 16;
constexpr int64_t SMALL_WORK = int64_t(1) << 15;  // with fewer numbers a second thread costs more than it saves

template <class Body>
void for_rows(int64_t rows, int64_t width, int64_t threads, const Body& body) {
  if (rows * width < SMALL_WORK) threads = 1;
  const int64_t chunk = threads > 1 ? (rows + 4 * threads - 1) / (4 * threads) : rows;
  parallel(threads, Phase(chunk ? (rows + chunk - 1) / chunk : 0, [&](int64_t task) {
    for (int64_t row = task * chunk; row < rows && row < (task + 1) * chunk; row++) body(row);
  }));
}

inline float rounded(float v, const float*) { return v; }
inline float rounded(float v, const uint16_t*) { return widen(to_bf16(v)); }
inline F16 rounded(F16 v, const float*) { return v; }
inline F16 rounded(F16 v, const uint16_t*) {
  uint16_t half[LANES];
  store(half, v);
  return load(half);
}

template <class T>
void rms_norm_row(const T* x, const uint16_t* weight, T* out, int64_t width, float eps) {
  F16 squares = zeros();
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    const F16 v = load(x + i);
    squares = fma(v, v, squares);
  }
  float total = sum(squares);
  for (int64_t j = i; j < width; j++) total = std::fma(widen(x[j]), widen(x[j]), total);
  const float scale = 1.0f / std::sqrt(total / float(width) + eps);
  for (i = 0; i + LANES <= width; i += LANES)
    store(out + i, mul(rounded(mul(load(x + i), splat(scale)), x), load(weight + i)));
  for (; i < width; i++) round_to(out + i, rounded(widen(x[i]) * scale, x) * widen(weight[i]));
}

template <class T>
void silu_mul_row(const T* gate_up, T* out, int64_t width) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) store(out + i, mul(silu(load(gate_up + i)), load(gate_up + width + i)));
  for (; i < width; i++) {
    const float gate = widen(gate_up[i]);
    round_to(out + i, gate / (1.0f + std::exp(-gate)) * widen(gate_up[width + i]));
  }
}

struct Angles;

template <class T>
void rope_token(const T* x, int64_t head_stride, float position, const float* inv_freq, T* out, int64_t heads,
                int64_t width) {
  float* cosine = scratch<Angles, float>(width);
  float* sine = cosine + width / 2;
  for (int64_t i = 0; i < width / 2; i++) {
    cosine[i] = std::cos(position * inv_freq[i]);
    sine[i] = std::sin(position * inv_freq[i]);
  }
  for (int64_t head = 0; head < heads; head++, x += head_stride, out += width)
    for (int64_t i = 0; i < width / 2; i++) {
      const float even = widen(x[2 * i]), odd = widen(x[2 * i + 1]);
      round_to(out + 2 * i, even * cosine[i] - odd * sine[i]);
      round_to(out + 2 * i + 1, even * sine[i] + odd * cosine[i]);
    }
}

template <class T>
void norm(const T* x, int64_t x_stride, const uint16_t* weight, T* out, int64_t rows, int64_t width, float eps,
          int64_t threads) {
  for_rows(rows, width, threads,
           [&](int64_t row) { rms_norm_row(x + row * x_stride, weight, out + row * width, width, eps); });
}

template <class T>
void add_norm(const T* x, int64_t x_stride, const T* residual, int64_t residual_stride, const uint16_t* weight, T* total,
              T* out, int64_t rows, int64_t width, float eps, int64_t threads) {
  for_rows(rows, width, threads, [&](int64_t row) {
    const T *a = x + row * x_stride, *b = residual + row * residual_stride;
    T* sum = total + row * width;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(sum + i, add(load(a + i), load(b + i)));
    for (; i < width; i++) round_to(sum + i, widen(a[i]) + widen(b[i]));
    rms_norm_row(sum, weight, out + row * width, width, eps);
  });
}

// The cache slots for the latent KV of new tokens. Strides count numbers.
struct Slots {
  void* cache;
  int64_t block_stride, token_stride, block_tokens;
  const int64_t* slots;

  template <class T>
  T* at(int64_t token) const {
    return static_cast<T*>(cache) + slots[token] / block_tokens * block_stride +
           slots[token] % block_tokens * token_stride;
  }
};

template <class T>
void norm_rope(const Slots& to, const T* latent, int64_t latent_stride, int64_t latent_width, const T* key,
               int64_t key_stride, int64_t key_width, const uint16_t* weight, float eps, const int64_t* positions,
               const float* inv_freq, int64_t tokens, int64_t threads) {
  for_rows(tokens, latent_width + key_width, threads, [&](int64_t t) {
    T* out = to.at<T>(t);
    rms_norm_row(latent + t * latent_stride, weight, out, latent_width, eps);
    rope_token(key + t * key_stride, 0, float(positions[t]), inv_freq, out + latent_width, 1, key_width);
  });
}

template <class T>
void swiglu(const T* gate_up, int64_t stride, T* out, int64_t rows, int64_t width, int64_t threads) {
  for_rows(rows, width, threads,
           [&](int64_t row) { silu_mul_row(gate_up + row * stride, out + row * width, width); });
}

template <class T>
void rotate(const T* x, const int64_t* positions, const float* inv_freq, T* out, int64_t tokens, int64_t heads,
            int64_t width, int64_t token_stride, int64_t head_stride, int64_t threads) {
  for_rows(tokens, heads * width, threads, [&](int64_t t) {
    rope_token(x + t * token_stride, head_stride, float(positions[t]), inv_freq, out + t * heads * width, heads, width);
  });
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

extern "C" {

void rms_norm(const void* x, int64_t is_bf16, int64_t x_stride, const uint16_t* weight, void* out, int64_t rows,
              int64_t width, float eps, int64_t threads) {
  if (is_bf16)
    norm(static_cast<const uint16_t*>(x), x_stride, weight, static_cast<uint16_t*>(out), rows, width, eps, threads);
  else
    norm(static_cast<const float*>(x), x_stride, weight, static_cast<float*>(out), rows, width, eps, threads);
}

void add_rms_norm(const void* x, int64_t is_bf16, int64_t x_stride, const void* residual, int64_t residual_stride,
                  const uint16_t* weight, void* total, void* out, int64_t rows, int64_t width, float eps,
                  int64_t threads) {
  if (is_bf16)
    add_norm(static_cast<const uint16_t*>(x), x_stride, static_cast<const uint16_t*>(residual), residual_stride, weight,
             static_cast<uint16_t*>(total), static_cast<uint16_t*>(out), rows, width, eps, threads);
  else
    add_norm(static_cast<const float*>(x), x_stride, static_cast<const float*>(residual), residual_stride, weight,
             static_cast<float*>(total), static_cast<float*>(out), rows, width, eps, threads);
}

void norm_rope_store(void* cache, int64_t is_bf16, int64_t block_stride, int64_t token_stride, int64_t block_tokens,
                     const int64_t* slots, const void* latent, int64_t latent_stride, int64_t latent_width,
                     const void* key, int64_t key_stride, int64_t key_width, const uint16_t* weight, float eps,
                     const int64_t* positions, const float* inv_freq, int64_t tokens, int64_t threads) {
  const Slots to{cache, block_stride, token_stride, block_tokens, slots};
  if (is_bf16)
    norm_rope(to, static_cast<const uint16_t*>(latent), latent_stride, latent_width, static_cast<const uint16_t*>(key),
              key_stride, key_width, weight, eps, positions, inv_freq, tokens, threads);
  else
    norm_rope(to, static_cast<const float*>(latent), latent_stride, latent_width, static_cast<const float*>(key),
              key_stride, key_width, weight, eps, positions, inv_freq, tokens, threads);
}

void silu_mul(const void* gate_up, int64_t is_bf16, int64_t stride, void* out, int64_t rows, int64_t width,
              int64_t threads) {
  if (is_bf16)
    swiglu(static_cast<const uint16_t*>(gate_up), stride, static_cast<uint16_t*>(out), rows, width, threads);
  else
    swiglu(static_cast<const float*>(gate_up), stride, static_cast<float*>(out), rows, width, threads);
}

void rope(const void* x, int64_t is_bf16, const int64_t* positions, const float* inv_freq, void* out, int64_t tokens,
          int64_t heads, int64_t width, int64_t token_stride, int64_t head_stride, int64_t threads) {
  if (is_bf16)
    rotate(static_cast<const uint16_t*>(x), positions, inv_freq, static_cast<uint16_t*>(out), tokens, heads, width,
           token_stride, head_stride, threads);
  else
    rotate(static_cast<const float*>(x), positions, inv_freq, static_cast<float*>(out), tokens, heads, width,
           token_stride, head_stride, threads);
}

// Strides are in bytes: latents and keys are copied unchanged.
void write_latent(uint8_t* cache, int64_t block_stride, int64_t token_stride, int64_t block_tokens,
                  const int64_t* slots, const uint8_t* latent, int64_t latent_stride, int64_t latent_bytes,
                  const uint8_t* rope_key, int64_t rope_stride, int64_t rope_bytes, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++) {
    uint8_t* to = cache + slots[t] / block_tokens * block_stride + slots[t] % block_tokens * token_stride;
    std::memcpy(to, latent + t * latent_stride, size_t(latent_bytes));
    std::memcpy(to + latent_bytes, rope_key + t * rope_stride, size_t(rope_bytes));
  }
}

}  // extern "C"
