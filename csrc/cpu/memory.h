// Memory of the CPU kernels: workspaces, and advice to the system about large outputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flowkernels::cpu {

// Asks for huge pages under a large block. glibc maps blocks of 32 MB and more afresh each time, and faulting them in
// by 4 KB pages takes several times as long as writing them. FLOWKERNELS_HUGE_PAGES=0 turns the advice off.
void advise_huge_pages(void* address, size_t bytes);

// Zeroed doubles, freed with the object.
struct Zeros {
  double* values;

  explicit Zeros(int64_t count);
  ~Zeros();
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;
};

}  // namespace flowkernels::cpu
