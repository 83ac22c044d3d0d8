#include "flashomni/attention.h"

#include <cmath>
#include <vector>

#include "core/check.h"
#include "ops/checks.h"

namespace flashomni {

void attention(Backend& backend, const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
               ConstTensorView v, float scale, TensorView out, TensorView lse, Stream stream) {
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
  const Argument inputs[] = {
      {"q", q, q.dtype, q_shape}, {"k", k, q.dtype, kv_shape}, {"v", v, q.dtype, kv_shape}};
  std::vector<Argument> outputs = {{"out", out, q.dtype, q_shape}};
  if (lse) outputs.push_back({"lse", lse, DType::kF32, {batch, plan.num_heads, seq_len}});
  check_arguments(kOp, backend.device(), inputs);
  check_arguments(kOp, backend.device(), outputs);
  check_outputs(kOp, outputs, inputs);
  backend.attention(plan, q, k, v, scale, out, lse, stream);
}

}  // namespace flashomni
