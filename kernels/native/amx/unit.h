// The tile unit (AMX) of Sapphire Rapids and later: eight registers of up to 16 rows of 64 bytes, and their product.
//
// With MOONSHARD_EMULATED_AMX the same names come from unit_emulated.h, in plain C++, for CPUs without the unit.
#pragma once
#include <cstdint>
#include <cstring>

namespace moonshard {
namespace {

constexpr int64_t TILE_ROWS = 16;    // rows of a tile
constexpr int64_t TILE_ROW = 64;     // bytes of a row: 32 bf16 or 16 float32
constexpr int64_t TILE_BYTES = 1024;

// Operand of LDTILECFG: palette 1, then the bytes per row and the rows of each tile.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

}  // namespace
}  // namespace moonshard

#ifdef MOONSHARD_EMULATED_AMX
#include "unit_emulated.h"
#else
#include <sys/syscall.h>
#include <unistd.h>

namespace moonshard {
namespace {

// Linux provides the 8 KiB of tile state per thread only on request. One request is enough for all threads of a process.
inline bool tiles_permitted() {
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  static const bool yes = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  return yes;
}

inline void tile_configure(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void tile_release() { asm volatile("tilerelease"); }

// ROWS rows, 64 bytes apart. The memory operands name exactly the bytes read and written, so that the compiler may keep
// running sums in registers across them, which a clobber of all memory would prevent.
template <int T, int ROWS>
inline void tile_load(const uint8_t* from) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(TILE_ROW), "i"(T),
               "m"(*reinterpret_cast<const uint8_t(*)[ROWS * TILE_ROW]>(from)));
}
template <int T, int ROWS>
inline void tile_store(float* to) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)"
               : "=m"(*reinterpret_cast<float(*)[ROWS * 16]>(to))
               : "r"(to), "r"(TILE_ROW), "i"(T));
}
// As many rows as the tile has, `stride` bytes apart.
template <int T>
inline void tile_load_rows(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store_rows(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
// C += A B: A rows of bf16, B pairs of rows of bf16. Per element: the even and the odd columns each by a chain of fused
// multiply-adds from zero, the two chains added, the result added to C.
template <int C, int A, int B>
inline void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace moonshard
#endif
