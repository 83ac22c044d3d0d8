// replay.cpp -- the decisions of a recorded run again, and what two runs differ in.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <sstream>

#include "flashomni/image_metrics.h"
#include "flashomni/record.h"

#include "core/check.h"

namespace flashomni {
namespace {

class ReplayPolicy : public SparsityPolicy {
 public:
  explicit ReplayPolicy(const RunRecord& run)
      : name_(run.settings.policy),
        num_layers_(run.num_layers),
        num_branches_(run.num_branches),
        layers_(run.layers),
        symbols_(run.symbols) {
    dense_ = std::ranges::all_of(
        run.steps, [](const StepProgress& step) { return step.kind == StepKind::kDense; });
    for (const Fallback& fallback : run.fallbacks) {
      if (fallback.layer < 0 && limitation_.empty()) limitation_ = fallback.reason;
    }
    made_by_ = remake(run.settings);
  }

  std::string_view name() const override { return name_; }
  bool is_dense() const override { return dense_; }
  std::string limitation(const BlockGrid&, std::span<const TokenPlace>) const override {
    return limitation_;
  }

  // What is not in the record is decided again: the keys that update steps skip, and which steps
  // are reused; the same numbers give the same decisions.
  PolicyTraits traits() const override {
    PolicyTraits traits = made_by_ ? made_by_->traits() : PolicyTraits{};
    traits.head_change = false;
    return traits;
  }
  std::optional<BlockScoreOptions> needs() const override {
    if (!traits().skips_on_updates) return std::nullopt;
    return made_by_->needs();
  }
  void select_update(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (made_by_) made_by_->select_update(context, symbols);
  }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    const int layer = context.layer, branch = context.branch, step = context.step;
    const std::size_t at =
        (static_cast<std::size_t>(step) * num_branches_ + branch) * num_layers_ + layer;
    const bool made = layer < num_layers_ && branch < num_branches_ && at < layers_.size() &&
                      layers_[at].action == LayerAction::kUpdate;
    FO_CHECK(made, "replay: the record has no symbols made at step %d, branch %d, layer %d", step,
             branch, layer);
    const SparseSymbols& recorded = symbols_[static_cast<std::size_t>(layers_[at].symbols)];
    FO_CHECK(recorded.num_heads() == symbols.num_heads() && recorded.q_grid() == symbols.q_grid() &&
                 recorded.kv_grid() == symbols.kv_grid(),
             "replay: the record has %d heads and %d query blocks, the generation %d and %d, or "
             "its blocks are others",
             recorded.num_heads(), recorded.q_grid().num_blocks(), symbols.num_heads(),
             symbols.q_grid().num_blocks());
    symbols = recorded;
  }

 private:
  // nullptr if it is no built-in policy, or its options no longer are what they were.
  static std::unique_ptr<SparsityPolicy> remake(const RunSettings& settings) {
    try {
      return make_policy(settings.policy, settings.policy_options);
    } catch (const Error&) {
      return nullptr;
    }
  }

  std::string name_, limitation_;
  std::unique_ptr<SparsityPolicy> made_by_;
  int num_layers_, num_branches_;
  bool dense_;
  std::vector<LayerRun> layers_;
  std::vector<SparseSymbols> symbols_;
};

template <typename T>
std::string text_of(const T& value) {
  std::ostringstream text;
  if constexpr (std::is_convertible_v<T, std::string>) {
    text << '"' << value << '"';
  } else {
    text << value;
  }
  return text.str();
}

class Differences {
 public:
  template <typename T>
  void compare(const char* what, const T& recorded, const T& now) {
    if (recorded != now)
      add(format("%s is %s, recorded was %s", what, text_of(now).c_str(),
                 text_of(recorded).c_str()));
  }
  void add(std::string phrase) { phrases_.push_back(std::move(phrase)); }
  std::vector<std::string> take() { return std::move(phrases_); }

 private:
  std::vector<std::string> phrases_;
};

void compare_requests(const GenerateRequest& recorded, const GenerateRequest& now,
                      Differences& differences) {
  differences.compare("the prompt", recorded.prompt, now.prompt);
  differences.compare("the width", recorded.width, now.width);
  differences.compare("the height", recorded.height, now.height);
  differences.compare("steps", recorded.steps, now.steps);
  differences.compare("cfg", recorded.cfg, now.cfg);
  differences.compare("guidance", recorded.guidance, now.guidance);
  differences.compare("the seed", recorded.seed, now.seed);
}

void compare_settings(const RunSettings& recorded, const RunSettings& now,
                      Differences& differences) {
  differences.compare("the model", recorded.model, now.model);
  differences.compare("the backend", recorded.backend, now.backend);
  differences.compare("the dtype", recorded.dtype, now.dtype);
  differences.compare("the preset", recorded.preset, now.preset);
  differences.compare("the policy", recorded.policy, now.policy);
  const EngineOptions &was = recorded.engine, &is = now.engine;
  differences.compare("warmup", was.warmup, is.warmup);
  differences.compare("interval", was.interval, is.interval);
  differences.compare("order", was.order, is.order);
  differences.compare("layer-cache", was.layer_cache, is.layer_cache);
  differences.compare("ramp", was.ramp, is.ramp);
  differences.compare("block_q", was.block_q, is.block_q);
  differences.compare("block_kv", was.block_kv, is.block_kv);
  differences.compare("the token order", std::string(token_order_name(was.token_order)),
                      std::string(token_order_name(is.token_order)));
  const auto newton = [](ForecastKind kind) { return kind == ForecastKind::kNewton; };
  differences.compare("forecast newton", newton(was.forecast), newton(is.forecast));
  for (const auto& [name, value] : now.policy_options) {
    const auto found = recorded.policy_options.find(name);
    const std::string before = found == recorded.policy_options.end() ? "" : found->second;
    differences.compare(name.c_str(), before, value);
  }
  for (const auto& [name, value] : recorded.policy_options) {
    if (!now.policy_options.contains(name)) differences.compare(name.c_str(), value, {});
  }
}

bool same_shape(const RunRecord& a, const RunRecord& b) {
  return a.steps.size() == b.steps.size() && a.num_branches == b.num_branches &&
         a.num_layers == b.num_layers && a.num_heads == b.num_heads && a.segments == b.segments &&
         a.layers.size() == b.layers.size();
}

const SparseSymbols* symbols_of(const RunRecord& run, const LayerRun& layer) {
  return layer.symbols < 0 ? nullptr : &run.symbols[static_cast<std::size_t>(layer.symbols)];
}

// The first decision that differs, as a phrase, or "".
std::string first_other_decision(const RunRecord& recorded, const RunRecord& now) {
  for (std::size_t i = 0; i < now.layers.size(); ++i) {
    const LayerRun &was = recorded.layers[i], &is = now.layers[i];
    const std::size_t layer = i % now.num_layers, pass = i / now.num_layers;
    const std::string where = format("step %zu, branch %zu, layer %zu", pass / now.num_branches,
                                     pass % now.num_branches, layer);
    if (was.action != is.action) {
      return format("%s ran as %s, recorded was %s", where.c_str(),
                    layer_action_name(is.action).data(), layer_action_name(was.action).data());
    }
    const SparseSymbols *before = symbols_of(recorded, was), *after = symbols_of(now, is);
    const bool same = before && after ? *before == *after : before == after;
    if (!same) return where + " had other symbols";
  }
  return {};
}

void compare_pictures(const Picture& recorded, const Picture& now, Differences& differences) {
  if (recorded.width != now.width || recorded.height != now.height) return;
  if (recorded.rgb == now.rgb) return;
  differences.add(
      format("the picture is another: %.1f dB from the recorded one (PSNR), largest "
             "difference %d of 255",
             psnr_db(recorded, now), max_abs_diff(recorded, now)));
}

}  // namespace

std::unique_ptr<SparsityPolicy> make_replay_policy(const RunRecord& run) {
  return std::make_unique<ReplayPolicy>(run);
}

void check_replay(const RunRecord& run, const Pipeline& pipeline, const GenerateRequest& request) {
  const GenerateRequest& recorded = run.request;
  const FluxConfig& config = pipeline.config();
  const int num_branches = request.cfg == 1.0 ? 1 : 2;
  FO_CHECK(request.width == recorded.width && request.height == recorded.height,
           "replay: the picture is %d x %d pixels, recorded was %d x %d", request.width,
           request.height, recorded.width, recorded.height);
  FO_CHECK(request.steps == recorded.steps, "replay: steps is %d, recorded was %d", request.steps,
           recorded.steps);
  FO_CHECK(num_branches == run.num_branches,
           "replay: cfg %g takes %d branches, recorded were %d with cfg %g", request.cfg,
           num_branches, run.num_branches, recorded.cfg);
  FO_CHECK(config.total_layers() == run.num_layers && config.num_heads == run.num_heads,
           "replay: the model has %d layers of %d heads, recorded were %d of %d (%s)",
           config.total_layers(), config.num_heads, run.num_layers, run.num_heads,
           run.settings.model.c_str());
}

std::vector<std::string> run_differences(const RunRecord& recorded, const RunRecord& now) {
  Differences differences;
  compare_requests(recorded.request, now.request, differences);
  compare_settings(recorded.settings, now.settings, differences);
  if (same_shape(recorded, now)) {
    const std::string decision = first_other_decision(recorded, now);
    if (!decision.empty()) differences.add(decision);
  } else {
    differences.add("the sequence or the model has another shape");
  }
  compare_pictures(recorded.picture, now.picture, differences);
  return differences.take();
}

}  // namespace flashomni
