#include "emulation/shared.h"

#include <algorithm>
#include <cstring>

#include "emulation/block.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) (void)(address)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) (void)(address)
#endif

namespace flowkernels::emulation {
namespace {

constexpr size_t kFence = 64, kLimit = 48 * 1024;              // what every device has without asking
constexpr unsigned char kFenceByte = 0xa5, kUnwritten = 0xff;  // all ones is NaN in every floating type

}  // namespace

void* SharedMemory::get(const void* tag, size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Array& array : arrays_)
    if (array.tag == tag) return array.memory.get() + kFence;
  total_ += bytes;
  if (total_ > kLimit) throw Fault("a block has no more than 48 KB of shared memory");
  Array array{tag, bytes, std::make_unique<unsigned char[]>(bytes + 2 * kFence)};
  unsigned char* const memory = array.memory.get();
  std::memset(memory, kFenceByte, bytes + 2 * kFence);
  std::memset(memory + kFence, kUnwritten, bytes);
  ASAN_POISON_MEMORY_REGION(memory, kFence);
  ASAN_POISON_MEMORY_REGION(memory + kFence + bytes, kFence);
  arrays_.push_back(std::move(array));
  return memory + kFence;
}

void SharedMemory::check_fences() const {
  for (const Array& array : arrays_) {
    unsigned char* const memory = array.memory.get();
    ASAN_UNPOISON_MEMORY_REGION(memory, array.bytes + 2 * kFence);
    const auto intact = [](unsigned char byte) { return byte == kFenceByte; };
    unsigned char* const end = memory + kFence + array.bytes;
    if (!std::all_of(memory, memory + kFence, intact) || !std::all_of(end, end + kFence, intact))
      throw Fault("write outside an array in shared memory");
  }
}

SharedMemory::~SharedMemory() {
  for (const Array& array : arrays_) ASAN_UNPOISON_MEMORY_REGION(array.memory.get(), array.bytes + 2 * kFence);
}

}  // namespace flowkernels::emulation
