// The products of bf16 runs on this instruction set. Float32 runs use `Vectors` on all of them.
#pragma once
#ifdef MOONSHARD_AMX
#include "amx/dense.h"
#include "amx/int4.h"
#else
#include "int4_tiles.h"
#include "product.h"
#endif

namespace moonshard {
namespace {

#ifdef MOONSHARD_AMX
using DenseProduct = DenseTiles;
using Int4Product = Int4Tiles;
#else
using DenseProduct = Vectors<DenseBf16>;
using Int4Product = Vectors<Int4Bf16>;
#endif

}  // namespace
}  // namespace moonshard
