#include "explain.h"
#include "text.h"

namespace flashomni::cli {
namespace {

OpTime find(const GenerateResult& result, const std::string& name) {
  for (const OpTime& op : result.op_times) {
    if (op.op == name) return op;
  }
  return {};
}

// The share of an operator's multiply-adds that the sparse run left out.
double left_out(const OpTime& dense, const OpTime& sparse) {
  return dense.macs > 0 ? 1 - sparse.macs / dense.macs : 0;
}

// Dense over sparse time if every operator's time fell exactly with its multiply-adds, for the
// operators called `only`, or for all of them.
double ceiling(const GenerateResult& dense, const GenerateResult& sparse, const std::string& only) {
  double saved = 0;
  for (const OpTime& op : dense.op_times) {
    if (!only.empty() && op.op != only) continue;
    saved += op.seconds * left_out(op, find(sparse, op.op));
  }
  return dense.seconds_denoise / (dense.seconds_denoise - saved);
}

std::string time_sentence(const GenerateResult& dense) {
  double products = 0;
  for (const char* name : {"gemm_q", "gemm_o", "linear"}) products += find(dense, name).seconds;
  const double total = dense.seconds_denoise, attention = find(dense, "attention").seconds;
  return print(
      "The dense run took %.2f s to denoise: attention %.0f %%, matrix products %.0f %%, the rest "
      "%.0f %%.",
      total, 100 * attention / total, 100 * products / total,
      100 * (1 - (attention + products) / total));
}

std::string bound_sentence(const GenerateResult& dense, const GenerateResult& sparse) {
  const OpTime attention = find(dense, "attention");
  return print(
      "Attention took %.0f %% of the dense time; %.0f %% of its work was left out, which alone "
      "bounds the speed-up at %.2fx; with what the projections and cached layers left out the "
      "bound is %.2fx; measured %.2fx.",
      100 * attention.seconds / dense.seconds_denoise,
      100 * left_out(attention, find(sparse, "attention")), ceiling(dense, sparse, "attention"),
      ceiling(dense, sparse, ""), dense.seconds_denoise / sparse.seconds_denoise);
}

std::string rate_sentence(const GenerateResult& dense, const GenerateResult& sparse) {
  const OpTime full = find(dense, "attention"), part = find(sparse, "attention");
  if (full.seconds <= 0 || part.seconds <= 0 || full.macs <= 0) return {};
  return print("Sparse attention worked at %.0f %% of the dense rate per multiply-add.",
               100 * (part.macs / part.seconds) / (full.macs / full.seconds));
}

std::string policy_sentence(const GenerateResult& sparse) {
  const OpTime policy = find(sparse, "policy");
  if (policy.seconds <= 0) return {};
  return print("Choosing the symbols took %.2f s, %.1f %% of the sparse time.", policy.seconds,
               100 * policy.seconds / sparse.seconds_denoise);
}

std::string cached_layers_sentence(const GenerateResult& sparse, const Sparsity& sparsity) {
  const int layers = sparse.sparsity.layers_cached;
  if (layers == 0) return {};
  if (sparsity.policy == "layer-cache" || sparsity.engine.layer_cache <= 0) {
    return print("%d layers were cached whole on dispatch steps, as the policy asks.", layers);
  }
  return print(
      "%d layers were cached whole on dispatch steps, because at most %.2g of their query blocks "
      "were live.",
      layers, sparsity.engine.layer_cache);
}

}  // namespace

std::vector<std::string> explain(const GenerateResult& dense, const GenerateResult& sparse,
                                 const Sparsity& sparsity) {
  std::vector<std::string> sentences = {time_sentence(dense), bound_sentence(dense, sparse),
                                        rate_sentence(dense, sparse), policy_sentence(sparse),
                                        cached_layers_sentence(sparse, sparsity)};
  std::erase(sentences, std::string());
  for (const Fallback& fallback : sparse.fallbacks) {
    const std::string who = fallback.layer < 0 ? "Not as asked for: "
                                               : "Layer " + std::to_string(fallback.layer) + ": ";
    sentences.push_back(who + fallback.reason + ".");
  }
  return sentences;
}

}  // namespace flashomni::cli
