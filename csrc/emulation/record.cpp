#include "emulation/record.h"

#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "emulation/block.h"

namespace flowkernels::emulation {
namespace {

constexpr uintptr_t kSectorBytes = 32;
constexpr size_t kLongestLog = 100000;

// One instruction of one warp: where it is in the code, and how many times its threads had executed it before.
struct Request {
  const void* place;
  unsigned warp, repetition;
  Access access;
  bool operator<(const Request& o) const {
    return std::tie(place, warp, repetition, access) < std::tie(o.place, o.warp, o.repetition, o.access);
  }
};

struct Counters {
  std::unordered_set<uintptr_t> sectors[2];                          // of the launch
  std::map<Request, std::set<uintptr_t>> requests;                   // of the block
  std::map<std::pair<unsigned, const void*>, unsigned> repetitions;  // of the block's threads
};

std::mutex mutex;
std::vector<Launch> launches;
bool counting = false;
Counters counters;

}  // namespace

void count_sectors(bool on) { counting = on; }

void reset() {
  const std::lock_guard<std::mutex> lock(mutex);
  launches.clear();
}

std::vector<Launch> log() {
  const std::lock_guard<std::mutex> lock(mutex);
  return launches;
}

void begin_launch(const Launch& launch) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (launches.size() == kLongestLog) launches.clear();
  launches.push_back(launch);
  counters = {};
}

void end_block() {
  if (!counting) return;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [request, sectors] : counters.requests)
    (request.access == Access::load ? launches.back().load_requests : launches.back().store_requests) += sectors.size();
  counters.requests.clear();
  counters.repetitions.clear();
}

void end_launch() {
  if (!counting) return;
  const std::lock_guard<std::mutex> lock(mutex);
  launches.back().loaded = counters.sectors[0].size();
  launches.back().stored = counters.sectors[1].size();
}

void check_alignment(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0)
    throw Fault("access of " + std::to_string(alignment) + " bytes at an address not aligned to it");
}

__attribute__((noinline)) void touch(const void* address, size_t bytes, size_t alignment, Access access) {
  check_alignment(address, alignment);
  if (!counting) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(address);
  const void* const place = __builtin_return_address(0);
  const std::lock_guard<std::mutex> lock(mutex);
  const unsigned repetition = counters.repetitions[{thread_index(), place}]++;
  auto& request = counters.requests[{place, thread_index() / 32, repetition, access}];
  for (uintptr_t sector = first / kSectorBytes; sector <= (first + bytes - 1) / kSectorBytes; ++sector) {
    request.insert(sector);
    counters.sectors[static_cast<int>(access)].insert(sector);
  }
}

}  // namespace flowkernels::emulation
