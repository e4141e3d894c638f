// What the emulation writes down for tests: every launch, and the 32-byte sectors that its threads touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace flowkernels::emulation {

struct Launch {
  std::string name;
  int64_t blocks;
  int threads;
  void* stream;
  size_t dynamic_shared = 0;  // bytes
  int device = 0;
  // Sectors: counted once per launch, and once per instruction of a warp; zero unless counting was asked for.
  int64_t loaded = 0, stored = 0;
  int64_t load_requests = 0, store_requests = 0;
};

void count_sectors(bool on);
void reset();
std::vector<Launch> log();

// Called by the launch that runs.
void begin_launch(const Launch& launch);
void end_block();
void end_launch();

enum class Access { load, store };

// Throws Fault where an address is not a multiple of the alignment.
void check_alignment(const void* address, size_t alignment);

// Checks the alignment of one access of the calling thread to global memory, and counts it.
void touch(const void* address, size_t bytes, size_t alignment, Access access);

}  // namespace flowkernels::emulation
