// thread_pool.h -- parallel loops over the backend's own threads, or over the caller's.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "flashomni/backend.h"  // Executor

namespace flashomni::cpu {

// Own threads spin for a while after a loop, because the next one usually follows within
// microseconds, and then park in the kernel. One loop at a time; loops do not nest.
class ThreadPool {
 public:
  using Task = void (*)(void* argument, index_t i, int worker);

  // `num_threads` counts the calling thread; 0 = one per core this process may use.
  // With an `executor` no thread is started.
  ThreadPool(int num_threads, const Executor* executor);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(i, worker) for every i in [0, count), in any order; `worker` < num_threads() tells
  // concurrent calls apart, for scratch memory. Returns when all calls have. Allocates nothing.
  template <typename Body>
  void parallel_for(index_t count, const Body& body) {
    run(
        count,
        [](void* argument, index_t i, int worker) {
          (*static_cast<const Body*>(argument))(i, worker);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  void run(index_t count, Task task, void* argument);
  void work(std::uint32_t epoch, int worker);
  void serve(int worker);

  int num_threads_ = 1;
  const Executor* executor_ = nullptr;
  std::vector<std::thread> threads_;

  // The current loop. A late worker may read these fields while the next loop is being set up; it
  // then fails to claim an index: `ticket_` holds the epoch beside the next free index, and is
  // closed before the fields change. So nobody waits for a parked worker with nothing left to do.
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> argument_{nullptr};
  std::atomic<std::uint32_t> count_{0};
  alignas(64) std::atomic<std::uint64_t> ticket_{0};  // epoch << 32 | next index
  alignas(64) std::atomic<std::uint32_t> finished_{0};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};  // what idle workers watch
  std::atomic<bool> stopping_{false};
};

}  // namespace flashomni::cpu
