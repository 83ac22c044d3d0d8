// pipeline_impl.h -- what a loaded pipeline consists of.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "flashomni/pipeline.h"

#include "backend/metered.h"
#include "pipeline/scheduler.h"
#include "pipeline/text_encoder.h"
#include "pipeline/tokenizer.h"

namespace flashomni {

struct Pipeline::Impl {
  struct Run;

  Impl(const std::filesystem::path& directory, std::unique_ptr<Backend> wrapped, DType dtype);
  void read_index(const std::filesystem::path& path);
  void check_parts(const std::filesystem::path& directory) const;
  void check(const GenerateRequest& request, const char* function) const;
  double macs_without_policy() const;
  void report_costs(GenerateResult& result) const;
  void finish(const GenerateResult& result, RunRecord& record) const;
  std::string model() const;
  TextEmbedding encode(std::span<const int> ids);  // on the device of `backend`

  const std::filesystem::path directory;
  const DType dtype;
  MeteredBackend backend;
  // Runs the text encoder where `backend` has no kernels for it: it is f32, and a thousandth of the
  // work. nullptr: `backend` itself does.
  std::unique_ptr<Backend> host_backend;
  WordTokenizer tokenizer;
  FlowMatchScheduler scheduler;
  TextEncoder text_encoder;
  FluxTransformer transformer;
  PipelineDefaults defaults;
  int patch = 0;  // pixels along the side of a token
  std::vector<int> negative_ids;
};

}  // namespace flashomni
