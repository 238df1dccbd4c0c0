// AVX512 and its BF16 dot product on a CPU without them, by SIMDe (Debian: libsimde-dev); emulate.py
// includes it before everything else. Slow, but it runs the logic of the AVX512 library anywhere.
#pragma once
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

// SIMDe 0.7.4 lacks these conversions. Lane by lane: `in` -> `out`, one element of `from` to one of `to`.
#define EMULATED(name, out, store_type, in, load_type, expression)                   \
  inline out emulated_##name(in wide) {                                              \
    load_type from[16];                                                              \
    store_type to[16];                                                               \
    out result;                                                                      \
    __builtin_memcpy(from, &wide, sizeof from);                                      \
    for (int i = 0; i < 16; i++) to[i] = store_type(expression);                     \
    __builtin_memcpy(&result, to, sizeof to);                                        \
    return result;                                                                   \
  }
EMULATED(cvtepi32_ps, simde__m512, float, simde__m512i, int, from[i])
EMULATED(cvtps_epi32, simde__m512i, int, simde__m512, float, _mm_cvtss_si32(_mm_set_ss(from[i])))
EMULATED(cvtepu16_epi32, simde__m512i, int, __m256i, unsigned short, from[i])
EMULATED(cvtepi32_epi16, __m256i, short, simde__m512i, int, from[i])
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
