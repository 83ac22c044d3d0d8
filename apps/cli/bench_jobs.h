// bench_jobs.h -- what `bench` times: one operator on made-up operands, sparse and dense.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "flashomni/backend.h"
#include "workload.h"

namespace flashomni::cli {

struct BenchShape {
  int seq_len = 0, num_heads = 0, head_dim = 0, block = 0, text_tokens = 0, interval = 0;
  DType dtype = DType::kF32;
  bool cpu_time = false;  // seconds are the processor's, of all threads, not the wall's
  int inner_dim() const { return num_heads * head_dim; }
};

struct BenchJob {
  std::function<double()> sparse, dense;  // one timed run; seconds
  std::function<double()> error;          // of the last sparse run, on sampled rows, fp64 oracle
  double macs_done = 0;                   // of a sparse run
  double ideal = 1;                       // dense over sparse work; 0: no such thing
};

// The dense side of each is the same operator with everything live, of the same backend.
BenchJob attention_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);
BenchJob gemm_q_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);
// A run is one update and interval - 1 dispatches, divided by the interval.
BenchJob gemm_o_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);
// One linear layer, whatever the sparsity.
BenchJob linear_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);
// Statistics and selection of one layer; dense is the dense attention of that layer.
BenchJob policy_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);
// The attention plan of one layer from symbols in the backend's memory; dense as of policy_job.
BenchJob plan_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);
// The plan of one layer's GEMM-Q and GEMM-O likewise; dense is the dense GEMM-Q.
BenchJob gemm_plan_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);
// One attention layer through the engine, projections and gated residual included, over an
// interval.
BenchJob step_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask);

// Seconds that `work` takes; `backend` has finished when it returns. On a GPU short work is queued
// several times: the mean of one.
double time_once(Backend& backend, const BenchShape& shape, const std::function<void()>& work);

}  // namespace flashomni::cli
