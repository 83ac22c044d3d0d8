#include "flashomni/attention.h"

#include <cmath>
#include <vector>

#include "core/check.h"
#include "ops/checks.h"

namespace flashomni {
namespace {

constexpr const char* kTermNames[] = {"reuse.terms[0]", "reuse.terms[1]", "reuse.terms[2]"};

void add_reuse(const AttentionReuse& reuse, DType dtype, const Layout& shape,
               std::vector<Argument>& inputs) {
  FO_CHECK(reuse.terms.size() <= kMaxForecastOrder + 1,
           "attention: reuse has %zu terms, allowed are up to %d", reuse.terms.size(),
           kMaxForecastOrder + 1);
  FO_CHECK(reuse.coefficients.size() == reuse.terms.size(),
           "attention: reuse has %zu coefficients, expected one for each of its %zu terms",
           reuse.coefficients.size(), reuse.terms.size());
  for (std::size_t o = 0; o < reuse.terms.size(); ++o) {
    FO_CHECK(std::isfinite(reuse.coefficients[o]),
             "attention: reuse.coefficients[%zu] is %g, expected a finite number", o,
             reuse.coefficients[o]);
    const DType term = reuse.terms[0].dtype == dtype ? dtype : DType::kF32;
    inputs.push_back({kTermNames[o], reuse.terms[o], term, shape});
  }
}

}  // namespace

void attention(Backend& backend, const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
               ConstTensorView v, float scale, TensorView out, TensorView lse, Stream stream,
               const AttentionReuse& reuse) {
  constexpr const char* kOp = "attention";
  FO_CHECK(plan.num_heads > 0, "attention: plan is empty, expected one from build_attention_plan");
  FO_CHECK(!plan.lists_on_device || backend.device().type != DeviceType::kCpu,
           "attention: plan has its lists on a device, expected one built by a host backend");
  check_present(kOp, "q", q, 4);
  check_float(kOp, "q", q);
  check_present(kOp, "k", k, 4);
  const index_t batch = plan.q_grid.batch(), seq_len = plan.q_grid.num_tokens();
  const index_t kv_len = plan.kv_grid.num_tokens();
  const index_t num_kv_heads = k.size(2), head_dim = q.size(3);
  FO_CHECK(num_kv_heads > 0 && plan.num_heads % num_kv_heads == 0,
           "attention: k has %lld heads, expected a divisor of the plan's %d",
           static_cast<long long>(num_kv_heads), plan.num_heads);
  FO_CHECK(std::isfinite(scale), "attention: scale is %g, expected a finite number", scale);

  const Layout q_shape{batch, seq_len, plan.num_heads, head_dim};
  const Layout kv_shape{batch, kv_len, num_kv_heads, head_dim};
  std::vector<Argument> inputs = {
      {"q", q, q.dtype, q_shape}, {"k", k, q.dtype, kv_shape}, {"v", v, q.dtype, kv_shape}};
  add_reuse(reuse, q.dtype, q_shape, inputs);
  std::vector<Argument> outputs = {{"out", out, q.dtype, q_shape}};
  if (lse) outputs.push_back({"lse", lse, DType::kF32, {batch, plan.num_heads, seq_len}});
  check_arguments(kOp, backend.device(), inputs);
  check_arguments(kOp, backend.device(), outputs);
  check_outputs(kOp, outputs, inputs);
  backend.attention(plan, q, k, v, scale, out, lse, stream, reuse);
}

}  // namespace flashomni
