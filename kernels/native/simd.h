// Vector types of all kernels: sixteen float32 lanes (F16) or 32-bit words (W16), for every size of register.
#pragma once
#ifdef MOONSHARD_AVX512
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

#include <cstring>

namespace moonshard {
namespace {

inline float widen(uint16_t bf16) {
  const uint32_t bits = uint32_t(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float widen(float value) { return value; }

inline uint16_t to_bf16(float value) {  // to nearest even, NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7FC0;
  return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline void round_to(float* out, float value) { *out = value; }
inline void round_to(uint16_t* out, float value) { *out = to_bf16(value); }

// e^x, relative error below 2e-7. Range reduction to |r| <= ln 2 / 2, then the Taylor series to r^7.
inline F16 exp(F16 x) {
  x = min(splat(88.0f), max(splat(-87.0f), x));
  const F16 whole = round_even(mul(x, splat(1.44269504f)));
  F16 r = fma(whole, splat(-0.693359375f), x);
  r = fma(whole, splat(2.12194440e-4f), r);
  F16 p = splat(1.0f / 5040);
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return mul(p, power_of_two(whole));
}

inline F16 silu(F16 x) { return div(x, add(splat(1.0f), exp(sub(zeros(), x)))); }

}  // namespace
}  // namespace moonshard
