// The threads of one block. fibres.cpp runs them in turns on one stack each, in an order that tests choose; threads.cpp
// runs them as threads of the operating system, which is slow and exists for ThreadSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

namespace flowkernels::emulation {

// What a GPU would not do, or not always: the kernel is wrong.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Schedule { forward, reverse, shuffled };
void set_schedule(Schedule schedule, uint64_t seed);

// Runs `thread` once for each thread of a block.
void run_block(unsigned block, unsigned threads, const std::function<void()>& thread);

// Of the thread that calls.
unsigned thread_index();
unsigned block_index();
inline unsigned lane_index() { return thread_index() % 32; }

// __syncthreads: returns when all threads of the block have come to the same place.
void wait_for_block(const char* place);

// What a warp exchanges: gives 8 bytes to the others of the mask, and returns those of lane `from`.
uint64_t exchange_bits(const char* place, uint32_t mask, uint64_t value, unsigned from);

template <class T>
T exchange(const char* place, uint32_t mask, T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange_bits(place, mask, bits, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Shared memory of the running block: the same for all threads that ask with the same tag, NaN until written to, and
// fenced by bytes that must not change.
void* shared_memory(const void* tag, size_t bytes);

}  // namespace flowkernels::emulation
