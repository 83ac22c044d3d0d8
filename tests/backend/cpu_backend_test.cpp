// What only the cpu backend has: its threads and its kernel sets. That it computes what the
// reference computes is tested for all backends and kernel sets alike.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "backend/cpu/thread_pool.h"
#include "flashomni/backend.h"
#include "flashomni/error.h"

namespace flashomni {
namespace {

using cpu::ThreadPool;

// More threads than cores, so that some sleep through a loop and wake up in another one.
TEST(ThreadPool, RunsEveryIndexOnceLoopAfterLoop) {
  constexpr int kThreads = 16;
  ThreadPool pool(kThreads, nullptr);
  EXPECT_EQ(pool.num_threads(), kThreads);
  for (int round = 0; round < 1000; ++round) {
    const int count = round % 2 ? 300 : round % 5;
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
    pool.parallel_for(count, [&](index_t i, int worker) {
      EXPECT_THAT(worker, testing::AllOf(testing::Ge(0), testing::Lt(kThreads)));
      if (i % 16 == round % 16) std::this_thread::yield();
      ++runs[static_cast<std::size_t>(i)];
    });
    for (const auto& n : runs) ASSERT_EQ(n, 1) << "round " << round;
  }
}

TEST(ThreadPool, NoTwoCallsShareAWorkerAtATime) {
  ThreadPool pool(3, nullptr);
  std::atomic<int> busy[3] = {};
  pool.parallel_for(3000, [&](index_t, int worker) {
    EXPECT_EQ(busy[worker]++, 0);
    std::this_thread::yield();
    --busy[worker];
  });
}

TEST(ThreadPool, TwoPoolsRunInTwoThreads) {
  const auto sum_squares = [](int threads) {
    ThreadPool pool(threads, nullptr);
    index_t total = 0;
    for (int round = 0; round < 500; ++round) {
      std::vector<index_t> squares(100);
      pool.parallel_for(100, [&](index_t i, int) { squares[static_cast<std::size_t>(i)] = i * i; });
      total += std::accumulate(squares.begin(), squares.end(), index_t{0});
    }
    return total;
  };
  index_t other = 0;
  std::thread thread([&] { other = sum_squares(2); });
  EXPECT_EQ(sum_squares(3), 500 * 328350);
  thread.join();
  EXPECT_EQ(other, 500 * 328350);
}

TEST(ThreadPool, WakesAfterParking) {
  ThreadPool pool(2, nullptr);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> runs = 0;
    pool.parallel_for(64, [&](index_t, int) { ++runs; });
    EXPECT_EQ(runs, 64);
  }
}

TEST(ThreadPool, UsesTheCallersExecutor) {
  struct Calls {
    int loops = 0;
    index_t tasks = 0;
  } calls;
  Executor executor;
  executor.context = &calls;
  executor.num_threads = 5;
  executor.run = [](void* context, index_t count, void (*task)(void*, index_t, int),
                    void* argument) {
    auto& calls = *static_cast<Calls*>(context);
    ++calls.loops;
    for (index_t i = count; i-- > 0; ++calls.tasks) task(argument, i, static_cast<int>(i % 5));
  };
  ThreadPool pool(1, &executor);
  EXPECT_EQ(pool.num_threads(), 5);
  index_t sum = 0;
  pool.parallel_for(10, [&](index_t i, int) { sum += i; });
  EXPECT_EQ(sum, 45);
  EXPECT_EQ(calls.loops, 1);
  EXPECT_EQ(calls.tasks, 10);
}

TEST(CpuKernelSets, EachOneMakesABackendThatNamesIt) {
  ASSERT_FALSE(cpu_kernel_sets().empty());
  for (const std::string& set : cpu_kernel_sets()) {
    BackendOptions options;
    options.cpu_kernels = set;
    options.num_threads = 2;
    EXPECT_THAT(make_backend("cpu", options)->description(),
                testing::AllOf(testing::HasSubstr(set), testing::HasSubstr("2 threads")));
  }
}

TEST(CpuKernelSets, AnUnknownOneListsThoseThatRun) {
  BackendOptions options;
  options.cpu_kernels = "mmx";
  try {
    make_backend("cpu", options);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("'mmx'"),
                                             testing::HasSubstr(cpu_kernel_sets().back())));
  }
}

}  // namespace
}  // namespace flashomni
