// Shared memory of one block.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace flowkernels::emulation {

class SharedMemory {
 public:
  ~SharedMemory();
  void* get(const void* tag, size_t bytes);
  void check_fences() const;  // at the end of a block, throws Fault

 private:
  struct Array {
    const void* tag;
    size_t bytes;
    std::unique_ptr<unsigned char[]> memory;
  };
  std::vector<Array> arrays_;
  size_t total_ = 0;
  std::mutex mutex_;
};

}  // namespace flowkernels::emulation
