// Exact sums of experts' outputs (kernels/grid.py), and their form on the wire.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace moonshard::wire {

// Of the grid of a bf16 run. Its sums travel as whole steps, in half the bytes, where all of a frame fit.
constexpr double STEP = 0x1p-22;

// False: a sum does not fit into 32 bits, or is no number; `steps` is of no use then.
inline bool to_steps(const double* sums, size_t count, int32_t* steps) {
  bool fit = true;
  for (size_t i = 0; i < count; i++) {
    const double value = sums[i] * (1 / STEP);
    const bool fits = std::fabs(value) < 0x1p31;
    fit &= fits;
    steps[i] = fits ? int32_t(value) : 0;
  }
  return fit;
}

inline void add(double* total, const double* sums, size_t count) {
  for (size_t i = 0; i < count; i++) total[i] += sums[i];
}

inline void add(double* total, const int32_t* steps, size_t count) {
  for (size_t i = 0; i < count; i++) total[i] += steps[i] * STEP;
}

// The only rounding of a sum.
inline void round_to(float* out, const double* total, size_t count) {
  for (size_t i = 0; i < count; i++) out[i] = float(total[i]);
}

}  // namespace moonshard::wire
