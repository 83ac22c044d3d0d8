#include "backend/cpu/thread_pool.h"

#ifdef __linux__
#include <sched.h>
#endif

#include "core/check.h"

namespace flashomni::cpu {
namespace {

// About 50 us: longer than the serial code between two parallel loops of a layer, short enough
// not to burn a core between generations. One pause is 40 to 140 cycles on current x86 cores.
constexpr int kSpins = 2000;

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int available_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned cores = std::thread::hardware_concurrency();
  return cores ? static_cast<int>(cores) : 1;
}

// Returns once `value` differs from `old`.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause_briefly();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, const Executor* executor) : executor_(executor) {
  if (executor) {
    num_threads_ = executor->num_threads > 0 ? executor->num_threads : 1;
    return;
  }
  num_threads_ = num_threads > 0 ? num_threads : available_cores();
  threads_.reserve(static_cast<std::size_t>(num_threads_ - 1));
  for (int worker = 1; worker < num_threads_; ++worker) {
    threads_.emplace_back([this, worker] { serve(worker); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(index_t count, Task task, void* argument) {
  if (executor_ && count > 1) {
    executor_->run(executor_->context, count, task, argument);
    return;
  }
  if (num_threads_ == 1 || count <= 1) {
    for (index_t i = 0; i < count; ++i) task(argument, i, 0);
    return;
  }
  FO_ASSERT(count < UINT32_MAX);
  const std::uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  const std::uint64_t first_ticket = static_cast<std::uint64_t>(epoch) << 32;
  ticket_.store(first_ticket | UINT32_MAX, std::memory_order_relaxed);  // closed while it changes
  task_.store(task, std::memory_order_release);
  argument_.store(argument, std::memory_order_release);
  count_.store(static_cast<std::uint32_t>(count), std::memory_order_release);
  finished_.store(0, std::memory_order_relaxed);
  ticket_.store(first_ticket, std::memory_order_release);
  epoch_.store(epoch, std::memory_order_release);
  epoch_.notify_all();

  work(epoch, 0);
  for (std::uint32_t done; (done = finished_.load(std::memory_order_acquire)) != count;) {
    wait_for_change(finished_, done);
  }
}

void ThreadPool::work(std::uint32_t epoch, int worker) {
  const Task task = task_.load(std::memory_order_acquire);
  void* const argument = argument_.load(std::memory_order_acquire);
  const std::uint32_t count = count_.load(std::memory_order_acquire);
  std::uint32_t done = 0;
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (static_cast<std::uint32_t>(ticket >> 32) == epoch &&
         static_cast<std::uint32_t>(ticket) < count) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    task(argument, static_cast<std::uint32_t>(ticket), worker);
    ++done;
    ticket = ticket_.load(std::memory_order_acquire);
  }
  if (done == 0) return;
  if (finished_.fetch_add(done, std::memory_order_acq_rel) + done == count) finished_.notify_one();
}

void ThreadPool::serve(int worker) {
  std::uint32_t seen = 0;
  while (true) {
    wait_for_change(epoch_, seen);
    seen = epoch_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    work(seen, worker);
  }
}

}  // namespace flashomni::cpu
