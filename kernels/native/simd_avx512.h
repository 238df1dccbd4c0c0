// Sixteen lanes on a CPU with AVX512: one register. With MOONSHARD_BF16_DOT also products of pairs of bf16.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace moonshard {
namespace {

constexpr int MAX_TILE_TOKENS = 12;    // 12 tokens x 32 rows: 24 of the 32 registers are accumulators
constexpr int TILE_REGISTERS = 24;     // accumulators of sixteen lanes that a tile may use

struct F16 {
  __m512 all;
};
struct W16 {  // sixteen 32-bit words
  __m512i all;
};

inline F16 splat(float v) { return {_mm512_set1_ps(v)}; }
inline F16 zeros() { return {_mm512_setzero_ps()}; }
inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 v) { _mm512_storeu_ps(p, v.all); }
inline F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.all, b.all)}; }
inline F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.all, b.all)}; }
inline F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline F16 div(F16 a, F16 b) { return {_mm512_div_ps(a.all, b.all)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
// Where a lane of b is NaN the result is NaN.
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.all, b.all)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.all, b.all)}; }

inline void pin(F16&, const float*&) {}  // thirty-two registers are enough

inline F16 round_even(F16 v) { return {_mm512_roundscale_ps(v.all, 0)}; }

inline F16 power_of_two(F16 whole) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(whole.all), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}

// to[i] += weight * v[i], rounded to the last bit of `rounder` first (kernels/grid.py).
inline void add_on_grid(double* to, double weight, F16 v, double rounder) {
  const __m512d w = _mm512_set1_pd(weight), r = _mm512_set1_pd(rounder);
  const __m256 half[2] = {_mm512_castps512_ps256(v.all),
                          _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v.all), 1))};
  for (int i = 0; i < 2; i++) {
    const __m512d term = _mm512_sub_pd(_mm512_fmadd_pd(w, _mm512_cvtps_pd(half[i]), r), r);
    _mm512_storeu_pd(to + 8 * i, _mm512_add_pd(_mm512_loadu_pd(to + 8 * i), term));
  }
}

inline F16 load(const double* p) {  // rounded
  const __m256d lo = _mm256_castps_pd(_mm512_cvtpd_ps(_mm512_loadu_pd(p)));
  const __m256d hi = _mm256_castps_pd(_mm512_cvtpd_ps(_mm512_loadu_pd(p + 8)));
  return {_mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(lo), hi, 1))};
}

inline float sum(F16 v) {  // the same tree as with AVX2
  float lane[16];
  _mm512_storeu_ps(lane, v.all);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}

inline W16 load_words(const void* p) { return {_mm512_loadu_si512(p)}; }

inline void store_words(void* p, W16 w) { _mm512_storeu_si512(p, w.all); }

// The two bf16 numbers of each word as float32.
inline F16 low_half(W16 w) { return {_mm512_castsi512_ps(_mm512_slli_epi32(w.all, 16))}; }
inline F16 high_half(W16 w) {
  return {_mm512_castsi512_ps(_mm512_and_si512(w.all, _mm512_set1_epi32(int(0xFFFF0000u))))};
}

inline W16 shift_right_4(W16 w) { return {_mm512_srli_epi32(w.all, 4)}; }

// Nibble `place` of each word without a shift: its value times 16^place. Place 7 is excluded: it has the sign bit.
template <int place>
inline F16 nibble(W16 w) {
  static_assert(place < 7);
  return {_mm512_cvtepi32_ps(_mm512_and_si512(w.all, _mm512_set1_epi32(15 << (4 * place))))};
}

inline F16 load(const uint16_t* p) {  // sixteen bf16
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

// Rounded in integer arithmetic, as with AVX2: the conversion instruction would flush denormals to zero.
inline void store(uint16_t* p, F16 v) {
  const __m512i bits = _mm512_castps_si512(v.all);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v.all, v.all, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7FC00000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}

#ifdef MOONSHARD_BF16_DOT
// Lane += low half of w times low half of x + high half of w times high half of x, all bf16.
inline F16 bf16_dot(F16 c, W16 w, uint32_t x) {
  return {_mm512_dpbf16_ps(c.all, (__m512bh)w.all, (__m512bh)_mm512_set1_epi32(int(x)))};
}
#endif
// Words of the upper halves of two registers: the low half from `even`, the high half from `odd`.
inline W16 upper_halves(F16 even, F16 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.all), 16);
  const __m512i high = _mm512_and_si512(_mm512_castps_si512(odd.all), _mm512_set1_epi32(int(0xFFFF0000u)));
  return {_mm512_or_si512(low, high)};
}
// 32 words, each with one number of `even` and one of `odd`.
inline void interleave(const uint16_t* even, const uint16_t* odd, uint32_t* to) {
  alignas(64) static constexpr uint16_t pick[2][32] = {
      {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, _mm512_load_si512(pick[0]), b));
  _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(a, _mm512_load_si512(pick[1]), b));
}
inline W16 shift_right_16bit(W16 w, int bits) { return {_mm512_srli_epi16(w.all, unsigned(bits))}; }
// Replaces each 16-bit lane by the table's entry at the index in its low five bits.
inline W16 look_up(W16 index, W16 table) { return {_mm512_permutexvar_epi16(index.all, table.all)}; }

}  // namespace
}  // namespace moonshard
