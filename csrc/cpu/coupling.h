// What kernels of coupling layers share: masks, and the passive part, which is copied.
#pragma once

#include "cpu/tiles.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

constexpr double kZero = 0;

// A byte for each element of a tile.
inline const uint8_t* load_mask(const View& view, const void* mask, const Tile& tile, uint8_t* scratch) {
  const uint8_t* base = static_cast<const uint8_t*>(mask);
  if (dense(view, tile)) return base + offset(view, tile);
  return gather(view, base, tile, scratch);
}

// To be called by every thread of a region. Without a source, zeros are written.
inline void copy_passive(const Tiling& tiling, const View& from, const void* source, const View& to, void* destination,
                         Dtype dtype) {
  const int64_t count = tiling.count();
  const View nowhere{};  // one zero, read everywhere
  const View& read = source == nullptr ? nowhere : from;
  const void* base = source == nullptr ? &kZero : source;
#pragma omp for schedule(static) nowait
  for (int64_t i = 0; i < count; ++i) copy_tile(read, base, to, destination, dtype, tiling.tile(i));
}

}  // namespace
}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
