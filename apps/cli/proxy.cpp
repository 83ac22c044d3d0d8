#include "proxy.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flashomni::cli {
namespace {

// A row that misses the share m of its softmax is off by m (kept mean - missed mean) of the values:
// at most 2 m of its length if both means are as long. Also what orders the settings of
// docs/quality.md best: skipping beside caching, with 2 rank correlation .96, with 1 .82.
constexpr double kMissed = 2;

struct Sums {
  double squared_error = 0;                        // of layers, relative
  double recall = 0, live_rows = 0;                // weighted by rows
  double forecast_error = 0, forecast_layers = 0;  // squared, relative
  double macs = 0, dense_macs = 0;
};

// The schedule of a setting over one layer of one branch, as the engine would run it.
class LayerSchedule {
 public:
  LayerSchedule(const RunTrace& run, const LayerTrace& layer, std::size_t policy,
                const EngineOptions& options, Sums& sums)
      : run_(run),
        layer_(layer),
        policy_(policy),
        traits_(run.policies[policy]),
        options_(options),
        sums_(sums) {
    options_.order = std::min(options.order, traits_.max_order);
  }

  void step(int step, StepKind kind) {
    sums_.dense_macs += layer_.macs;
    if (kind == StepKind::kUpdate) update(step);
    if (kind == StepKind::kDispatch) dispatch(step);
    if (kind == StepKind::kDense) sums_.macs += layer_.macs;
  }

 private:
  const Choice& choice(int step) const { return layer_.choices[step][policy_]; }

  void update(int step) {
    if (!whole_) select(step);
    updates_.push_back(step);
    if (traits_.skips_on_updates) {
      const SparseSymbols& symbols = choice(step).update;
      add_error(step, symbols, /*whole=*/false);
      sums_.macs += macs_left(symbols);
    } else {
      sums_.macs += layer_.macs;
    }
  }

  // Differences of a row block are formed while its cached heads stay the same.
  void select(int step) {
    const SparseSymbols previous = std::move(symbols_);
    symbols_ = choice(step).dispatch;
    whole_ = traits_.caches_layers && symbols_.stats().live_fraction() <= options_.layer_cache;
    first_update_.resize(symbols_.q_grid().num_blocks());
    for (int i = 0; i < symbols_.q_grid().num_blocks(); ++i) {
      const bool same = !whole_ && !updates_.empty() &&
                        std::ranges::equal(previous.cache_row(0, i), symbols_.cache_row(0, i));
      if (!same) first_update_[i] = updates_.size();
    }
  }

  void dispatch(int step) {
    add_error(step, symbols_, whole_);
    if (!whole_) sums_.macs += macs_left(symbols_);
  }

  // Live rows miss what is skipped, cached ones are forecast.
  void add_error(int step, const SparseSymbols& symbols, bool whole) {
    double total = 0, lost = 0, cached_total = 0, cached_lost = 0;
    for (int i = 0; i < symbols.q_grid().num_blocks(); ++i) {
      const int rows = symbols.q_grid().at(0, i).count;
      std::vector<double> weights;  // of the forecast
      for (int head = 0; head < symbols.num_heads(); ++head) {
        const double size = layer_.output.at(head, i, step, step);
        total += size;
        if (!whole && symbols.is_live(0, head, i)) {
          const double recall = kept_mass(step, symbols, head, i);
          sums_.recall += recall * rows;
          sums_.live_rows += rows;
          lost += kMissed * kMissed * (1 - recall) * (1 - recall) * size;
        } else {
          const std::span updates = std::span(updates_).subspan(first_update_[i]);
          if (weights.empty()) weights = forecast_weights(options_, updates, step);
          cached_total += size;
          cached_lost += layer_.output.squared_distance(head, i, updates, weights, step);
        }
      }
    }
    if (cached_total > 0) {
      sums_.forecast_error += cached_lost / cached_total;
      sums_.forecast_layers += 1;
    }
    if (total > 0) sums_.squared_error += (lost + cached_lost) / total;
  }

  double kept_mass(int step, const SparseSymbols& symbols, int head, int q_block) const {
    const int width = symbols.kv_grid().num_blocks();
    const float* row =
        layer_.masses[step].data() +
        (static_cast<index_t>(head) * symbols.q_grid().num_blocks() + q_block) * width;
    double kept = 0;
    for (int j = 0; j < width; ++j) {
      if (symbols.is_used(0, head, q_block, j)) kept += row[j];
    }
    return kept;
  }

  // What is left of the layer's work: pairs in attention; queries and the output projection of live
  // rows; keys and values of heads that have one.
  double macs_left(const SparseSymbols& symbols) const {
    const SymbolStats stats = symbols.stats();
    const double tokens = symbols.q_grid().length(0), dim = run_.head_dim;
    const double hidden = symbols.num_heads() * dim;
    int idle_heads = 0;
    for (int head = 0; head < symbols.num_heads(); ++head) {
      bool live = false;
      for (int i = 0; i < symbols.q_grid().num_blocks(); ++i) live |= symbols.is_live(0, head, i);
      idle_heads += !live;
    }
    return layer_.macs - 2 * dim * static_cast<double>(stats.pairs - stats.live_pairs) -
           2 * tokens * hidden * hidden * stats.cached_fraction() -
           2 * tokens * hidden * dim * idle_heads;
  }

  const RunTrace& run_;
  const LayerTrace& layer_;
  const std::size_t policy_;
  const PolicyTraits traits_;
  EngineOptions options_;
  Sums& sums_;

  SparseSymbols symbols_;
  bool whole_ = false;                     // cached whole, for good
  std::vector<int> updates_;               // steps
  std::vector<std::size_t> first_update_;  // of each query block, that its differences go back to
};

}  // namespace

Proxy judge(const RunTrace& run, std::size_t policy, const EngineOptions& options) {
  const std::vector<StepKind> kinds =
      classify_steps(run.num_steps, options.warmup, options.interval);
  Sums sums;
  for (const LayerTrace& layer : run.layers) {
    LayerSchedule schedule(run, layer, policy, options, sums);
    for (int step = 0; step < run.num_steps; ++step) schedule.step(step, kinds[step]);
  }
  const auto mean = [](double sum, double count) {
    return count > 0 ? sum / count : std::numeric_limits<double>::quiet_NaN();
  };
  // Layers that were not seen count as the mean of those that were.
  const double in_layers = 1 - run.macs_outside_layers / run.macs;
  const auto layer_steps = static_cast<double>(run.layers.size()) * run.num_steps;
  return {.recall = mean(sums.recall, sums.live_rows),
          .forecast_error = std::sqrt(mean(sums.forecast_error, sums.forecast_layers)),
          .loss = std::sqrt(mean(sums.squared_error, layer_steps)),
          .macs_ratio = 1 - in_layers * (1 - sums.macs / sums.dense_macs)};
}

}  // namespace flashomni::cli
