#include "cpu/memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace flowkernels::cpu {

namespace {

constexpr size_t kMappedAfresh = size_t{32} << 20;

bool huge_pages_wanted() {
  const char* setting = std::getenv("FLOWKERNELS_HUGE_PAGES");
  return setting == nullptr || *setting != '0';
}

}  // namespace

void advise_huge_pages([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  static const bool wanted = huge_pages_wanted();
  if (!wanted || bytes < kMappedAfresh) return;
  constexpr uintptr_t page = 4096;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(address) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(address) + bytes) / page * page;
  // Advice only: where the kernel does not take it, the pages are faulted in as ever.
  madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

Zeros::Zeros(int64_t count) : values(nullptr) {
  if (count == 0) return;
  values = static_cast<double*>(std::calloc(static_cast<size_t>(count), sizeof(double)));
  if (values == nullptr) throw std::bad_alloc();
}

Zeros::~Zeros() { std::free(values); }

}  // namespace flowkernels::cpu
