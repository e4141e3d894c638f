// The CUDA surface that the kernels use: the toolkit's under nvcc, csrc/emulation elsewhere. All that differs between
// the two at this level, launches and shared memory, is here.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define FK_SHARED(type, name, count) __shared__ type name[count]
#define FK_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char fk_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(fk_dynamic_shared)
#else
#include "emulation/cuda.h"
#define FK_SHARED(type, name, count) type* const name = FK_EMULATED_SHARED(type, count)
#define FK_DYNAMIC_SHARED(type, name) type* const name = FK_EMULATED_DYNAMIC_SHARED(type)
#endif

#include "cuda/device.h"
#include "flow/inline.h"

namespace flowkernels::cuda {

constexpr int kThreads = 256;  // of a block, unless a launch says otherwise

// Threads of a block, and bytes of the shared memory that a kernel calls FK_DYNAMIC_SHARED.
struct BlockShape {
  int threads = kThreads;
  size_t shared = 0;
};

// Every kernel takes one struct. The grid has one dimension, because the others end at 65,535.
template <class Arguments>
void launch(const char* name, void (*kernel)(Arguments), int64_t blocks, const Arguments& arguments, void* stream,
            BlockShape shape = {}) {
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int32_t>::max()) throw std::length_error(std::string(name) + ": too many rows");
#if defined(__CUDACC__)
  kernel<<<static_cast<unsigned>(blocks), shape.threads, shape.shared, static_cast<cudaStream_t>(stream)>>>(arguments);
  check(cudaPeekAtLastError(), name);
#else
  emulation::launch({name, blocks, shape.threads, stream, shape.shared}, [&] { kernel(arguments); });
#endif
}

}  // namespace flowkernels::cuda
