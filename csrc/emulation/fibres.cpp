// Threads of a block as fibres: each runs until it waits for others, so that a whole run is deterministic, and wrong
// synchronisation shows as a wrong value in one of a few orders, or as a wait that nothing can end.
#include <sys/mman.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <random>
#include <vector>

#include "emulation/block.h"
#include "emulation/shared.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace flowkernels::emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

// A stack and where execution on it stopped. The scheduler's own has no memory here: it is that of the caller.
struct Context {
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
#if defined(__x86_64__)
  void* top = nullptr;
#else
  ucontext_t saved;
#endif
};

#if defined(__x86_64__)
// Saves what a function call must preserve on one stack and restores it from another.
extern "C" void flowkernels_switch_stack(void** from, void* to);
asm(R"(
.text
.globl flowkernels_switch_stack
.hidden flowkernels_switch_stack
.type flowkernels_switch_stack, @function
flowkernels_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size flowkernels_switch_stack, .-flowkernels_switch_stack
)");
#endif

void start_switch([[maybe_unused]] Context* from, [[maybe_unused]] const Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from ? &from->fake_stack : nullptr, to.stack, to.stack_bytes);
#endif
}

void finish_switch([[maybe_unused]] Context& now, [[maybe_unused]] Context* before) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(now.fake_stack, &bottom, &bytes);
  if (before) {  // the scheduler's stack is known only from here
    before->stack = static_cast<char*>(const_cast<void*>(bottom));
    before->stack_bytes = bytes;
  }
#endif
}

void jump(Context& from, Context& to) {
#if defined(__x86_64__)
  flowkernels_switch_stack(&from.top, to.top);
#else
  swapcontext(&from.saved, &to.saved);
#endif
}

void prepare(Context& context, void (*entry)()) {
#if defined(__x86_64__)
  // As if `entry` had been called: the address that it would return to lies at a multiple of 16, less 8.
  void** top = reinterpret_cast<void**>(context.stack + context.stack_bytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.top = top;
#else
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = context.stack;
  context.saved.uc_stack.ss_size = context.stack_bytes;
  makecontext(&context.saved, entry, 0);
#endif
}

enum class State { ready, at_barrier, at_exchange, left };

struct Fibre {
  Context context;
  State state;
  const char* place;  // where it waits
  uint32_t mask;      // of the exchange it waits in
  unsigned from;
  uint64_t value;
};

Schedule schedule = Schedule::forward;
std::mt19937_64 random_order;

struct Block {
  unsigned number, current;
  std::vector<Fibre>& fibres;
  const std::function<void()>& thread;
  Context scheduler;
  SharedMemory shared;
  std::exception_ptr error;

  void run();

 private:
  void resume(unsigned index);
  void finish_exchange(unsigned index);
  bool all_at(const char* place) const;
  [[noreturn]] void stuck() const;
};

Block* block = nullptr;  // launches run one at a time

Fibre& current() { return block->fibres[block->current]; }

void wait(State state, const char* place) {
  Fibre& fibre = current();
  fibre.state = state;
  fibre.place = place;
  start_switch(&fibre.context, block->scheduler);
  jump(fibre.context, block->scheduler);
  finish_switch(fibre.context, nullptr);
}

void fibre_main() {
  finish_switch(current().context, &block->scheduler);
  try {
    block->thread();
  } catch (...) {
    block->error = std::current_exception();
  }
  current().state = State::left;
  start_switch(nullptr, block->scheduler);
  jump(current().context, block->scheduler);
}

void Block::resume(unsigned index) {
  current = index;
  start_switch(&scheduler, fibres[index].context);
  jump(scheduler, fibres[index].context);
  finish_switch(scheduler, nullptr);
  if (error) std::rethrow_exception(error);
  if (fibres[index].state == State::at_exchange) finish_exchange(index);
}

// If all threads of the mask have come, each gets its value and goes on.
void Block::finish_exchange(unsigned index) {
  const unsigned warp = index / 32 * 32;
  const Fibre& last = fibres[index];
  uint64_t received[32];
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    if (warp + lane >= fibres.size()) throw Fault("an exchange names threads that the block does not have");
    const Fibre& fibre = fibres[warp + lane];
    if (fibre.state != State::at_exchange) return;
    if (fibre.mask != last.mask || fibre.place != last.place)
      throw Fault(std::string("threads of a warp exchange at different places: ") + fibre.place + ", " + last.place);
    if (!(last.mask >> (fibre.from % 32) & 1)) throw Fault("an exchange reads a thread outside its mask");
    received[lane] = fibres[warp + fibre.from % 32].value;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    fibres[warp + lane].value = received[lane];
    fibres[warp + lane].state = State::ready;
  }
}

bool Block::all_at(const char* place) const {
  return std::all_of(fibres.begin(), fibres.end(),
                     [&](const Fibre& f) { return f.state == State::at_barrier && f.place == place; });
}

void Block::stuck() const {
  unsigned left = 0, at_barrier = 0, at_exchange = 0;
  const char* place = "";
  for (const Fibre& f : fibres) {
    left += f.state == State::left;
    at_barrier += f.state == State::at_barrier;
    at_exchange += f.state == State::at_exchange;
    if (f.state != State::left) place = f.place;
  }
  throw Fault("divergent synchronisation: " + std::to_string(at_barrier) + " threads wait at a barrier, " +
              std::to_string(at_exchange) + " in an exchange, " + std::to_string(left) +
              " have left; the last waits at " + place);
}

void Block::run() {
  std::vector<unsigned> order(fibres.size());
  std::iota(order.begin(), order.end(), 0u);
  if (schedule == Schedule::reverse) std::reverse(order.begin(), order.end());
  for (;;) {
    if (schedule == Schedule::shuffled) std::shuffle(order.begin(), order.end(), random_order);
    bool progress = false, waiting = false;
    for (const unsigned index : order) {
      if (fibres[index].state == State::ready) {
        resume(index);
        progress = true;
      }
      waiting = waiting || fibres[index].state != State::left;
    }
    if (!waiting) break;
    if (progress) continue;
    if (!all_at(fibres[0].place)) stuck();
    for (Fibre& fibre : fibres) fibre.state = State::ready;
  }
  shared.check_fences();
}

char* allocate_stack() {
  void* const memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

}  // namespace

void set_schedule(Schedule chosen, uint64_t seed) {
  schedule = chosen;
  random_order.seed(seed);
}

void run_block(unsigned number, unsigned threads, const std::function<void()>& thread) {
  static std::vector<Fibre> fibres;
  while (fibres.size() < threads) {
    fibres.emplace_back();
    fibres.back().context.stack = allocate_stack();
    fibres.back().context.stack_bytes = kStackBytes;
  }
  fibres.resize(threads);
  for (Fibre& fibre : fibres) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(fibre.context.stack, kStackBytes);  // an abandoned fibre leaves its frames
#endif
    prepare(fibre.context, fibre_main);
    fibre.state = State::ready;
    fibre.place = "";
  }
  Block running{number, 0, fibres, thread, {}, {}, {}};
  block = &running;
  struct Leave {
    ~Leave() { block = nullptr; }
  } leave;
  running.run();
}

unsigned thread_index() { return block->current; }
unsigned block_index() { return block->number; }

void wait_for_block(const char* place) { wait(State::at_barrier, place); }

uint64_t exchange_bits(const char* place, uint32_t mask, uint64_t value, unsigned from) {
  Fibre& fibre = current();
  if (!(mask >> lane_index() & 1)) throw Fault("a thread exchanges with a mask that it is not in");
  fibre.mask = mask;
  fibre.from = from;
  fibre.value = value;
  wait(State::at_exchange, place);
  return fibre.value;
}

void* shared_memory(const void* tag, size_t bytes) { return block->shared.get(tag, bytes); }

}  // namespace flowkernels::emulation
