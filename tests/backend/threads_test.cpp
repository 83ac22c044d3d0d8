// Backends and threads: several at once, any number of workers, and a caller's executor.
#include <thread>

#include "attention_case.h"
#include "output_case.h"

namespace flashomni {
namespace {

using test::Pattern;

class Threads : public test::BackendTest {
 protected:
  // Results of attention and of an output projection.
  struct Results {
    test::AttentionCase attention;
    test::GemmQCase query;
  };
  Results results_of(Backend& by) {
    const test::Axis axis{150, 32};
    Results results{test::random_attention({1, 3, 3, 24, axis, axis}, dtype, Pattern::kRandom),
                    test::random_gemm_q(test::projection_sparsity(1, 3, axis, Pattern::kRandom),
                                        {0, 150}, 40, 24, dtype)};
    test::run(by, results.attention);
    test::run(by, results.query);
    return results;
  }
  void expect_same(const Results& a, const Results& b) {
    EXPECT_TRUE(test::same_bits(a.attention.out, b.attention.out));
    EXPECT_TRUE(test::same_bits(a.attention.lse, b.attention.lse));
    EXPECT_TRUE(test::same_bits(a.query.out, b.query.out));
  }
};

TEST_P(Threads, TheirNumberDoesNotChangeABit) {
  const Results expected = results_of(*backend);
  for (const int num_threads : {1, 3, 5}) {
    SCOPED_TRACE(num_threads);
    BackendOptions options = GetParam().options();
    options.num_threads = num_threads;
    expect_same(results_of(*make_backend(GetParam().backend, options)), expected);
  }
}

TEST_P(Threads, TwoBackendsInTwoThreadsDoNotDisturbEachOther) {
  const Results expected = results_of(*backend);
  const auto work = [&] {
    const auto own = GetParam().make();
    for (int repeat = 0; repeat < 5; ++repeat) expect_same(results_of(*own), expected);
  };
  std::thread other(work);
  work();
  other.join();
}

// Runs tasks last to first, as three workers in turn.
struct BackwardExecutor {
  int calls = 0;
  static void run(void* context, index_t count, void (*task)(void*, index_t, int), void* argument) {
    ++static_cast<BackwardExecutor*>(context)->calls;
    for (index_t i = count - 1; i >= 0; --i) task(argument, i, static_cast<int>(i % 3));
  }
};

TEST_P(Threads, AHostProgramMayLendItsOwn) {
  const Results expected = results_of(*backend);
  BackwardExecutor host;
  const Executor executor{&host, 3, BackwardExecutor::run};
  BackendOptions options = GetParam().options();
  options.executor = &executor;
  expect_same(results_of(*make_backend(GetParam().backend, options)), expected);
  if (backend->name() == "cpu") EXPECT_GT(host.calls, 0);
}

FO_TEST_EVERY_BACKEND(Threads);

}  // namespace
}  // namespace flashomni
