// Threads of a block as threads of the operating system, so that ThreadSanitizer sees the races of a kernel. The
// barriers are pthread's: it does not see through std::barrier, and would then report nothing.
#include <pthread.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "emulation/block.h"
#include "emulation/shared.h"

namespace flowkernels::emulation {
namespace {

class Barrier {
 public:
  explicit Barrier(unsigned count) { pthread_barrier_init(&barrier_, nullptr, count); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

thread_local unsigned index_in_block = 0;

// As many threads as a block has, which run one job after another: starting them takes longer than what they do.
class Pool {
 public:
  explicit Pool(unsigned threads) : start_(threads + 1), end_(threads + 1) {
    for (unsigned index = 0; index < threads; ++index) threads_.emplace_back([this, index] { work(index); });
  }
  ~Pool() {
    job_ = nullptr;
    start_.wait();
    for (std::thread& thread : threads_) thread.join();
  }
  size_t size() const { return threads_.size(); }

  void run(const std::function<void()>& job) {
    job_ = &job;
    start_.wait();
    end_.wait();
  }

 private:
  void work(unsigned index) {
    index_in_block = index;
    for (start_.wait(); job_ != nullptr; start_.wait()) {
      (*job_)();
      end_.wait();
    }
  }

  Barrier start_, end_;
  const std::function<void()>* job_ = nullptr;
  std::vector<std::thread> threads_;
};

struct Warp {
  explicit Warp(unsigned threads) : barrier(threads) {}
  Barrier barrier;
  uint64_t values[32] = {};
};

struct Block {
  Block(unsigned number, unsigned threads) : number(number), barrier(threads) {
    for (unsigned first = 0; first < threads; first += 32) warps.emplace_back(std::min(32u, threads - first));
  }
  unsigned number;
  Barrier barrier;
  std::deque<Warp> warps;
  SharedMemory shared;
};

Block* block = nullptr;

}  // namespace

void set_schedule(Schedule, uint64_t) {}  // the operating system's

void run_block(unsigned number, unsigned threads, const std::function<void()>& thread) {
  Block running(number, threads);
  block = &running;
  static std::unique_ptr<Pool> pool;
  if (!pool || pool->size() != threads) pool = std::make_unique<Pool>(threads);
  pool->run(thread);
  running.shared.check_fences();
}

unsigned thread_index() { return index_in_block; }
unsigned block_index() { return block->number; }

void wait_for_block(const char*) { block->barrier.wait(); }

uint64_t exchange_bits(const char*, uint32_t mask, uint64_t value, unsigned from) {
  if (mask != 0xffffffffu) throw Fault("threads of the operating system exchange whole warps only");
  Warp& warp = block->warps[thread_index() / 32];
  warp.values[lane_index()] = value;
  warp.barrier.wait();
  const uint64_t received = warp.values[from % 32];
  warp.barrier.wait();
  return received;
}

void* shared_memory(const void* tag, size_t bytes) { return block->shared.get(tag, bytes); }

}  // namespace flowkernels::emulation
