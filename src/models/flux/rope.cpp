#include "models/flux/rope.h"

#include <cmath>

namespace flashomni::flux {
namespace {

constexpr double kTheta = 10000.0;

}  // namespace

RopeTensors make_rope_tables(int text_tokens, int grid_height, int grid_width,
                             const std::array<int, 3>& axes_dims) {
  const int pairs = (axes_dims[0] + axes_dims[1] + axes_dims[2]) / 2;
  const index_t tokens = text_tokens + static_cast<index_t>(grid_height) * grid_width;
  RopeTensors tables{Tensor::host(DType::kF32, {tokens, pairs}),
                     Tensor::host(DType::kF32, {tokens, pairs})};
  for (index_t token = 0; token < tokens; ++token) {
    const index_t pixel = token - text_tokens;
    const std::array<index_t, 3> position =
        pixel < 0 ? std::array<index_t, 3>{0, 0, 0}
                  : std::array<index_t, 3>{0, pixel / grid_width, pixel % grid_width};
    index_t at = token * pairs;
    for (std::size_t axis = 0; axis < axes_dims.size(); ++axis) {
      for (int i = 0; i < axes_dims[axis]; i += 2, ++at) {
        const double frequency = 1.0 / std::pow(kTheta, static_cast<double>(i) / axes_dims[axis]);
        const double angle = static_cast<double>(position[axis]) * frequency;
        tables.cos.as<float>()[at] = static_cast<float>(std::cos(angle));
        tables.sin.as<float>()[at] = static_cast<float>(std::sin(angle));
      }
    }
  }
  return tables;
}

}  // namespace flashomni::flux
