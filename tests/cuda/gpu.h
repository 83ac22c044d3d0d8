// gpu.h -- tests of the cuda backend on a GPU. Its kernels want a head_dim of 64 or 128 and 16-bit
// operands, so it has cases of its own beside those of tests/backend; the oracles are the same.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <vector>

#include "attention_case.h"
#include "output_case.h"

namespace flashomni::test {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const BackendInfo& info : list_backends()) {
      if (info.name != "cuda") continue;
      if (!info.available) GTEST_SKIP() << "the cuda backend cannot run here: " << info.detail;
      backend = make_backend("cuda", {});
    }
  }
  SymbolWords upload(const SparseSymbols& symbols) {
    SymbolWords words =
        make_symbol_words(*backend, symbols.q_grid(), symbols.kv_grid(), symbols.num_heads());
    upload_symbols(*backend, symbols, words);
    return words;
  }
  std::unique_ptr<Backend> backend;
};

inline constexpr DType kHalfTypes[] = {DType::kBF16, DType::kF16};
inline constexpr int kHeadDims[] = {64, 128};

// A stream of its own, and a graph of what is enqueued on it.
class GpuStream {
 public:
  GpuStream() { cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); }
  ~GpuStream() { cudaStreamDestroy(stream_); }
  GpuStream(const GpuStream&) = delete;
  GpuStream& operator=(const GpuStream&) = delete;
  Stream handle() const { return {stream_}; }
  cudaError_t synchronize() const { return cudaStreamSynchronize(stream_); }

  // Captures what `enqueue` puts on the stream, without running it, and then runs it `times`.
  template <typename Enqueue>
  cudaError_t capture_and_replay(Enqueue&& enqueue, int times) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t instance = nullptr;
    cudaError_t status = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal);
    enqueue();
    if (status == cudaSuccess) status = cudaStreamEndCapture(stream_, &graph);
    if (status == cudaSuccess) status = cudaGraphInstantiate(&instance, graph, 0);
    for (int i = 0; i < times && status == cudaSuccess; ++i) {
      status = cudaGraphLaunch(instance, stream_);
    }
    if (status == cudaSuccess) status = synchronize();
    if (instance) cudaGraphExecDestroy(instance);
    if (graph) cudaGraphDestroy(graph);
    return status;
  }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace flashomni::test
