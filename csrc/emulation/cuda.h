// The part of CUDA that csrc/cuda uses, executed on the CPU. No header of the toolkit is involved, so the emulation is
// the same with and without one.
#pragma once

#include <cstdint>
#include <string>

#include "emulation/block.h"
#include "emulation/record.h"

#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

// Shared memory is one allocation per place in the code, which `tag` stands for.
#define FK_EMULATED_SHARED(type, count)                                                             \
  [] {                                                                                              \
    static const char tag = 0;                                                                      \
    return static_cast<type*>(flowkernels::emulation::shared_memory(&tag, sizeof(type) * (count))); \
  }()

// And one whose size the launch says.
#define FK_EMULATED_DYNAMIC_SHARED(type)                                           \
  [] {                                                                             \
    static const char tag = 0;                                                     \
    const size_t bytes = flowkernels::emulation::dynamic_shared_bytes();           \
    return static_cast<type*>(flowkernels::emulation::shared_memory(&tag, bytes)); \
  }()

#define threadIdx (flowkernels::emulation::Index{flowkernels::emulation::thread_index()})
#define blockIdx (flowkernels::emulation::Index{flowkernels::emulation::block_index()})

namespace flowkernels::emulation {

struct Index {
  unsigned x;
};

// Runs every block of a grid, one after another, and returns when the last has ended.
void launch(const Launch& launch, const std::function<void()>& kernel);

// Of the launch that runs.
size_t dynamic_shared_bytes();

}  // namespace flowkernels::emulation

using cudaError_t = int;
enum : cudaError_t {
  cudaSuccess = 0,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
};
struct cudaFuncAttributes {};

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);

// Both name the place of the call, so that threads which wait at different places are told apart.
#define __syncthreads() flowkernels::emulation::wait_for_block(FK_EMULATED_PLACE)
#define __shfl_xor_sync(mask, value, apart) \
  flowkernels::emulation::exchange(FK_EMULATED_PLACE, mask, value, flowkernels::emulation::lane_index() ^ (apart))
#define FK_EMULATED_PLACE (__FILE__ ":" FK_EMULATED_TEXT(__LINE__))
#define FK_EMULATED_TEXT(line) FK_EMULATED_TEXT_OF(line)
#define FK_EMULATED_TEXT_OF(line) #line

constexpr int kEmulatedDevices = 4;

inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
