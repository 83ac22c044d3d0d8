#include "flashomni/gemm.h"

#include <cmath>
#include <vector>

#include "core/check.h"
#include "ops/checks.h"

namespace flashomni {
namespace {

void check_built(const char* op, const Backend& backend, const GemmPlan& plan,
                 const PackedWeight& weight) {
  FO_CHECK(plan.num_heads > 0, "%s: plan is empty, expected one from build_gemm_plan", op);
  FO_CHECK(!plan.lists_on_device || backend.device().type != DeviceType::kCpu,
           "%s: plan has its lists on a device, expected one built by a host backend", op);
  FO_CHECK(weight.storage, "%s: weight is missing, expected one made by Backend::pack_weight", op);
}

void check_epilogue(const NormRope& epilogue, const GemmPlan& plan, index_t head_dim,
                    std::vector<Argument>& inputs) {
  FO_CHECK(!epilogue.cos == !epilogue.sin, "gemm_q: %s is given without %s",
           epilogue.cos ? "cos" : "sin", epilogue.cos ? "sin" : "cos");
  if (epilogue.norm_weight) {
    inputs.push_back({"norm_weight", epilogue.norm_weight, DType::kF32, {head_dim}});
  }
  if (epilogue.cos) {
    FO_CHECK(head_dim % 2 == 0, "gemm_q: head_dim is %lld, the rotary embedding needs an even one",
             static_cast<long long>(head_dim));
    const Layout angles{plan.num_rows, head_dim / 2};
    inputs.push_back({"cos", epilogue.cos, DType::kF32, angles});
    inputs.push_back({"sin", epilogue.sin, DType::kF32, angles});
  }
}

constexpr const char* kTermNames[] = {"terms[0]", "terms[1]", "terms[2]"};

// The tensors of an output projection and its bias cache, sorted by direction.
struct ProjectionArguments {
  std::vector<Argument> inputs, outputs;  // of the projection
  std::vector<Argument> cache;
};

ProjectionArguments projection_arguments(const char* op, const Backend& backend,
                                         const GemmPlan& plan, const OutputProjection& projection,
                                         const BiasCacheView& cache) {
  FO_CHECK(projection.weight, "%s: weight is missing", op);
  const PackedWeight& weight = *projection.weight;
  check_built(op, backend, plan, weight);
  if (projection.mlp) check_present(op, "mlp", projection.mlp, 3);
  const index_t mlp_dim = projection.mlp ? projection.mlp.size(2) : 0;
  const index_t attention_dim = weight.in_features - mlp_dim;
  FO_CHECK(attention_dim > 0 && attention_dim % plan.num_heads == 0,
           "%s: weight has %lld in_features, %lld of them for mlp; the rest is no multiple of the "
           "plan's %d heads",
           op, static_cast<long long>(weight.in_features), static_cast<long long>(mlp_dim),
           plan.num_heads);
  FO_CHECK(!projection.out || !projection.residual,
           "%s: out and residual are both given, expected one of them", op);
  FO_CHECK(!projection.gate || projection.residual, "%s: gate is given without residual", op);
  FO_CHECK(cache.order >= -1 && cache.order <= kMaxForecastOrder,
           "%s: cache.order is %d, must be between -1 and %d", op, cache.order, kMaxForecastOrder);

  const index_t batch = plan.batch, rows = plan.num_rows;
  const Layout out_shape{batch, rows, weight.out_features};
  ProjectionArguments arguments;
  arguments.inputs = {{"o", projection.o, weight.dtype, {batch, rows, attention_dim}}};
  if (projection.mlp) {
    arguments.inputs.push_back({"mlp", projection.mlp, weight.dtype, {batch, rows, mlp_dim}});
  }
  if (projection.bias) {
    arguments.inputs.push_back({"bias", projection.bias, DType::kF32, {weight.out_features}});
  }
  if (projection.gate) {
    arguments.inputs.push_back({"gate", projection.gate, DType::kF32, {weight.out_features}});
  }
  if (projection.residual) {
    arguments.outputs = {{"residual", projection.residual, DType::kF32, out_shape}};
  } else {
    arguments.outputs = {{"out", projection.out, weight.dtype, out_shape}};
  }
  const DType compact = backend.bias_cache_dtype(weight.dtype);
  const DType term = cache.terms[0].dtype == compact ? compact : DType::kF32;
  for (int o = 0; o <= cache.order; ++o) {
    arguments.cache.push_back({kTermNames[o], cache.terms[o], term, out_shape});
  }
  if (cache.order >= 0) {
    arguments.cache.push_back(
        {"valid_order", cache.valid_order, DType::kU8, {batch, plan.num_q_blocks}});
  }
  return arguments;
}

void check_projection(const char* op, Device device, const ProjectionArguments& arguments) {
  check_arguments(op, device, arguments.inputs);
  check_arguments(op, device, arguments.outputs);
  check_arguments(op, device, arguments.cache);
}

}  // namespace

void gemm_q(Backend& backend, const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
            ConstTensorView bias, const NormRope& epilogue, TensorView out, Stream stream) {
  constexpr const char* kOp = "gemm_q";
  check_built(kOp, backend, plan, weight);
  FO_CHECK(weight.out_features > 0 && weight.out_features % plan.num_heads == 0,
           "gemm_q: weight has %lld out_features, expected a multiple of the plan's %d heads",
           static_cast<long long>(weight.out_features), plan.num_heads);
  const index_t head_dim = weight.out_features / plan.num_heads;
  FO_CHECK(weight.column_group == head_dim,
           "gemm_q: weight is packed with column_group %d, expected the head_dim %lld",
           weight.column_group, static_cast<long long>(head_dim));

  const index_t batch = plan.batch, rows = plan.num_rows;
  std::vector<Argument> inputs = {{"x", x, weight.dtype, {batch, rows, weight.in_features}}};
  if (bias) inputs.push_back({"bias", bias, DType::kF32, {weight.out_features}});
  check_epilogue(epilogue, plan, head_dim, inputs);
  const Argument outputs[] = {{"out", out, weight.dtype, {batch, rows, weight.out_features}}};
  check_arguments(kOp, backend.device(), inputs);
  check_arguments(kOp, backend.device(), outputs);
  check_outputs(kOp, outputs, inputs);
  backend.gemm_q(plan, x, weight, bias, epilogue, out, stream);
}

void gemm_o_update(Backend& backend, const GemmPlan& plan, const OutputProjection& projection,
                   float steps_since_update, const BiasCacheView& cache, Stream stream) {
  constexpr const char* kOp = "gemm_o_update";
  ProjectionArguments arguments = projection_arguments(kOp, backend, plan, projection, cache);
  FO_CHECK(cache.order < 1 || (steps_since_update > 0 && std::isfinite(steps_since_update)),
           "gemm_o_update: steps_since_update is %g, must be positive", steps_since_update);
  check_projection(kOp, backend.device(), arguments);
  arguments.outputs.insert(arguments.outputs.end(), arguments.cache.begin(), arguments.cache.end());
  check_outputs(kOp, arguments.outputs, arguments.inputs);
  backend.gemm_o_update(plan, projection, steps_since_update, cache, stream);
}

void gemm_o_dispatch(Backend& backend, const GemmPlan& plan, const OutputProjection& projection,
                     std::span<const float> coefficients, const BiasCacheView& cache,
                     Stream stream) {
  constexpr const char* kOp = "gemm_o_dispatch";
  ProjectionArguments arguments = projection_arguments(kOp, backend, plan, projection, cache);
  FO_CHECK(!projection.bias, "gemm_o_dispatch: bias must be {}, the bias cache contains it");
  FO_CHECK(cache.order >= 0, "gemm_o_dispatch: cache.order is -1, there is no bias cache");
  FO_CHECK(
      !coefficients.empty() && coefficients.size() <= static_cast<std::size_t>(cache.order) + 1,
      "gemm_o_dispatch: %zu coefficients, expected between 1 and %d", coefficients.size(),
      cache.order + 1);
  check_projection(kOp, backend.device(), arguments);
  arguments.inputs.insert(arguments.inputs.end(), arguments.cache.begin(), arguments.cache.end());
  check_outputs(kOp, arguments.outputs, arguments.inputs);
  backend.gemm_o_dispatch(plan, projection, coefficients, cache, stream);
}

}  // namespace flashomni
