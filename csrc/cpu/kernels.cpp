#include "cpu/kernels.h"

#include <cstdlib>
#include <stdexcept>

namespace flowkernels::cpu {

namespace baseline {
extern const Kernels table;
}
#if defined(FLOWKERNELS_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

struct Candidate {
  const Kernels* table;
  bool runs;
};

// Best first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> found;
#if defined(FLOWKERNELS_X86)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  found.push_back({&avx512::table, has_avx512});
  found.push_back({&avx2::table, has_avx2});
#endif
  found.push_back({&baseline::table, true});
  return found;
}

const Kernels& choose() {
  const char* wanted = std::getenv("FLOWKERNELS_ISA");
  std::string offered;
  for (const Candidate& candidate : candidates()) {
    if (!candidate.runs) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == candidate.table->isa) return *candidate.table;
    offered += std::string(offered.empty() ? "" : ", ") + candidate.table->isa;
  }
  throw std::runtime_error("FLOWKERNELS_ISA must be one of " + offered + " on this processor; got '" + wanted + "'");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) names.push_back(candidate.table->isa);
  return names;
}

}  // namespace flowkernels::cpu
