// Tensors arrive as addresses.
#pragma once

#include <cstdint>

namespace flowkernels {

using Address = uintptr_t;

inline const void* input(Address address) { return reinterpret_cast<const void*>(address); }
inline void* output(Address address) { return reinterpret_cast<void*>(address); }

}  // namespace flowkernels
