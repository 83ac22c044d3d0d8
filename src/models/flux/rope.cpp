#include "models/flux/rope.h"

#include <cmath>

namespace flashomni::flux {
namespace {

constexpr double kTheta = 10000.0;

}  // namespace

RopeTensors make_rope_tables(int text_tokens, std::span<const TokenPlace> places,
                             const std::array<int, 3>& axes_dims) {
  const int pairs = (axes_dims[0] + axes_dims[1] + axes_dims[2]) / 2;
  const index_t tokens = text_tokens + std::ssize(places);
  RopeTensors tables{Tensor::host(DType::kF32, {tokens, pairs}),
                     Tensor::host(DType::kF32, {tokens, pairs})};
  for (index_t token = 0; token < tokens; ++token) {
    const TokenPlace place = token < text_tokens ? TokenPlace{} : places[token - text_tokens];
    const std::array<int, 3> position{place.frame, place.row, place.column};
    index_t at = token * pairs;
    for (std::size_t axis = 0; axis < axes_dims.size(); ++axis) {
      for (int i = 0; i < axes_dims[axis]; i += 2, ++at) {
        const double frequency = 1.0 / std::pow(kTheta, static_cast<double>(i) / axes_dims[axis]);
        const double angle = position[axis] * frequency;
        tables.cos.as<float>()[at] = static_cast<float>(std::cos(angle));
        tables.sin.as<float>()[at] = static_cast<float>(std::sin(angle));
      }
    }
  }
  return tables;
}

}  // namespace flashomni::flux
