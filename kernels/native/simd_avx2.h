// Sixteen lanes on a CPU with AVX2 and FMA: two registers of eight.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace moonshard {
namespace {

constexpr int MAX_TILE_TOKENS = 6;     // 6 tokens x 16 rows: 12 of the 16 registers are accumulators
constexpr int TILE_REGISTERS = 6;      // accumulators of sixteen lanes that a tile may use

struct F16 {
  __m256 lo, hi;
};
struct W16 {  // sixteen 32-bit words
  __m256i lo, hi;
};

inline F16 splat(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
inline F16 zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
// Where a lane of b is NaN the result is NaN.
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }

// Makes the compiler compute v here and read x only afterwards, which limits the registers in use at a time.
inline void pin(F16& v, const float*& x) { asm volatile("" : "+x"(v.lo), "+x"(v.hi), "+r"(x)); }

inline F16 round_even(F16 v) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(v.lo, mode), _mm256_round_ps(v.hi, mode)};
}

inline __m256 power_of_two(__m256 whole) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline F16 power_of_two(F16 whole) { return {power_of_two(whole.lo), power_of_two(whole.hi)}; }

// to[i] += weight * v[i], rounded to the last bit of `rounder` first (kernels/grid.py).
inline void add_on_grid(double* to, double weight, F16 v, double rounder) {
  const __m256d w = _mm256_set1_pd(weight), r = _mm256_set1_pd(rounder);
  const __m128 quarter[4] = {_mm256_castps256_ps128(v.lo), _mm256_extractf128_ps(v.lo, 1),
                             _mm256_castps256_ps128(v.hi), _mm256_extractf128_ps(v.hi, 1)};
  for (int i = 0; i < 4; i++) {
    const __m256d term = _mm256_sub_pd(_mm256_fmadd_pd(w, _mm256_cvtps_pd(quarter[i]), r), r);
    _mm256_storeu_pd(to + 4 * i, _mm256_add_pd(_mm256_loadu_pd(to + 4 * i), term));
  }
}

inline __m256 load_eight(const double* p) {
  return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(p)));
}
inline F16 load(const double* p) { return {load_eight(p), load_eight(p + 8)}; }  // rounded

inline float sum(F16 v) {  // a fixed tree
  const __m256 eight = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline W16 load_words(const void* p) {
  const __m256i* from = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}

// The two bf16 numbers of each word as float32.
inline F16 low_half(W16 w) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(w.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.hi, 16))};
}
inline F16 high_half(W16 w) {
  const __m256i mask = _mm256_set1_epi32(int(0xFFFF0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(w.lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(w.hi, mask))};
}

inline W16 shift_right_4(W16 w) { return {_mm256_srli_epi32(w.lo, 4), _mm256_srli_epi32(w.hi, 4)}; }

// Nibble `place` of each word without a shift: its value times 16^place. Place 7 is excluded: it has the sign bit.
template <int place>
inline F16 nibble(W16 w) {
  static_assert(place < 7);
  const __m256i mask = _mm256_set1_epi32(15 << (4 * place));
  return {_mm256_cvtepi32_ps(_mm256_and_si256(w.lo, mask)), _mm256_cvtepi32_ps(_mm256_and_si256(w.hi, mask))};
}

inline F16 load(const uint16_t* p) {  // sixteen bf16
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i lo = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(half));
  const __m256i hi = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(half, 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}

inline __m256i bf16_bits(__m256 v) {  // to nearest even, NaN stays NaN; in the low half of each lane
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC00000), is_nan), 16);
}
inline void store(uint16_t* p, F16 v) {
  const __m256i packed = _mm256_packus_epi32(bf16_bits(v.lo), bf16_bits(v.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}

}  // namespace
}  // namespace moonshard
