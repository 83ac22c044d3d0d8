// checks.cpp -- what the engine asks of its callers.
// SPDX-License-Identifier: Apache-2.0
#include "engine/checks.h"

#include <cmath>

#include "core/check.h"

namespace flashomni {
namespace {

int sequence_length(const SequenceShape& shape) {
  int length = 0;
  for (const Segment& segment : shape.segments) length += segment.num_tokens;
  return length;
}

void check_matrix(const char* what, std::size_t stream, ConstTensorView view, index_t rows,
                  index_t columns, DType dtype) {
  FO_CHECK(view.rank() == 2 && view.size(0) == rows && view.size(1) == columns,
           "attend: %s of stream %zu is %s, must be [%lld, %lld]", what, stream,
           view.layout.to_string().c_str(), static_cast<long long>(rows),
           static_cast<long long>(columns));
  FO_CHECK(view.dtype == dtype, "attend: %s of stream %zu is %s, the generation runs in %s", what,
           stream, dtype_name(view.dtype).data(), dtype_name(dtype).data());
}

void check_weight(const char* what, std::size_t stream, const PackedWeight* weight,
                  index_t out_features, index_t in_features) {
  FO_CHECK(weight != nullptr, "attend: stream %zu has no %s weight", stream, what);
  FO_CHECK(weight->out_features == out_features && weight->in_features == in_features,
           "attend: %s weight of stream %zu is [%lld, %lld], must be [%lld, %lld]", what, stream,
           static_cast<long long>(weight->out_features),
           static_cast<long long>(weight->in_features), static_cast<long long>(out_features),
           static_cast<long long>(in_features));
}

// Q, K and V are projected head by head.
void check_head_weight(const char* what, std::size_t stream, const PackedWeight* weight,
                       const SequenceShape& shape, index_t in_features) {
  check_weight(what, stream, weight, static_cast<index_t>(shape.num_heads) * shape.head_dim,
               in_features);
  FO_CHECK(
      weight->column_group == shape.head_dim,
      "attend: %s weight of stream %zu is packed with column_group %d, must be the head_dim %d",
      what, stream, weight->column_group, shape.head_dim);
}

void check_stream(const SequenceShape& shape, std::size_t i, const AttentionStream& stream) {
  FO_CHECK(stream.weights != nullptr, "attend: stream %zu has no weights", i);
  const index_t inner_dim = static_cast<index_t>(shape.num_heads) * shape.head_dim;
  const index_t in_features = stream.x.rank() == 2 ? stream.x.size(1) : 0;
  const index_t mlp_dim = stream.mlp.rank() == 2 ? stream.mlp.size(1) : 0;
  check_matrix("x", i, stream.x, stream.num_tokens, in_features, shape.dtype);
  check_matrix("out", i, stream.out, stream.num_tokens, shape.hidden_dim, stream.out.dtype);
  if (stream.residual) {
    check_matrix("residual", i, stream.residual, stream.num_tokens, shape.hidden_dim, DType::kF32);
  }
  if (stream.gate) {
    FO_CHECK(stream.residual, "attend: stream %zu has a gate but no residual", i);
    FO_CHECK(stream.gate.rank() == 1 && stream.gate.size(0) == shape.hidden_dim &&
                 stream.gate.dtype == DType::kF32,
             "attend: gate of stream %zu is %s %s, must be f32 [%d]", i,
             dtype_name(stream.gate.dtype).data(), stream.gate.layout.to_string().c_str(),
             shape.hidden_dim);
  }
  if (stream.mlp) check_matrix("mlp", i, stream.mlp, stream.num_tokens, mlp_dim, shape.dtype);
  check_head_weight("q", i, stream.weights->q, shape, in_features);
  check_head_weight("k", i, stream.weights->k, shape, in_features);
  check_head_weight("v", i, stream.weights->v, shape, in_features);
  check_weight("out", i, stream.weights->out, shape.hidden_dim, inner_dim + mlp_dim);
}

}  // namespace

void check_engine_options(const EngineOptions& options) {
  FO_CHECK(options.warmup >= 1, "engine: warmup is %d, must be at least 1", options.warmup);
  FO_CHECK(options.interval >= 1, "engine: interval is %d, must be at least 1", options.interval);
  FO_CHECK(options.order >= 0 && options.order <= kMaxForecastOrder,
           "engine: order is %d, must be 0 to %d", options.order, kMaxForecastOrder);
  FO_CHECK(options.layer_cache >= 0 && options.layer_cache <= 1,
           "engine: layer_cache is %g, must be 0 to 1", options.layer_cache);
  FO_CHECK(options.ramp >= 0 && std::isfinite(options.ramp),
           "engine: ramp is %g, must be 0 or more", options.ramp);
  FO_CHECK(options.block_q >= 1, "engine: block_q is %d, must be at least 1", options.block_q);
  FO_CHECK(options.block_kv >= 1, "engine: block_kv is %d, must be at least 1", options.block_kv);
}

void check_sequence(const SequenceShape& shape) {
  FO_CHECK(sequence_length(shape) >= 1, "begin: the sequence has %d tokens, must have at least 1",
           sequence_length(shape));
  FO_CHECK(shape.num_heads >= 1, "begin: num_heads is %d, must be at least 1", shape.num_heads);
  FO_CHECK(shape.head_dim >= 1, "begin: head_dim is %d, must be at least 1", shape.head_dim);
  FO_CHECK(shape.hidden_dim >= 1, "begin: hidden_dim is %d, must be at least 1", shape.hidden_dim);
  FO_CHECK(shape.num_layers >= 1, "begin: num_layers is %d, must be at least 1", shape.num_layers);
  std::size_t image_tokens = 0;
  for (const Segment& segment : shape.segments) {
    if (segment.kind == SegmentKind::kImage) image_tokens += segment.num_tokens;
  }
  FO_CHECK(shape.places.empty() || shape.places.size() == image_tokens,
           "begin: there are %zu places, the sequence has %zu image tokens", shape.places.size(),
           image_tokens);
}

void check_layer(const char* function, int layer, int num_layers) {
  FO_CHECK(layer >= 0 && layer < num_layers, "%s: layer is %d, must be 0 to %d", function, layer,
           num_layers - 1);
}

void check_hidden(const char* function, ConstTensorView hidden, const SequenceShape& shape) {
  FO_CHECK(hidden.dtype == DType::kF32 && hidden.rank() == 2 && hidden.layout.is_contiguous() &&
               hidden.size(0) == sequence_length(shape) && hidden.size(1) == shape.hidden_dim,
           "%s: hidden is %s %s, must be contiguous f32 [%d, %d]", function,
           dtype_name(hidden.dtype).data(), hidden.layout.to_string().c_str(),
           sequence_length(shape), shape.hidden_dim);
}

void check_streams(const SequenceShape& shape, std::span<const AttentionStream> streams,
                   const RopeTables& rope) {
  const int seq_len = sequence_length(shape);
  int next_token = 0;
  for (std::size_t i = 0; i < streams.size(); ++i) {
    FO_CHECK(streams[i].first_token == next_token, "attend: stream %zu starts at token %d, not %d",
             i, streams[i].first_token, next_token);
    next_token += streams[i].num_tokens;
    check_stream(shape, i, streams[i]);
  }
  FO_CHECK(next_token == seq_len, "attend: the streams have %d tokens, the sequence has %d",
           next_token, seq_len);
  for (const ConstTensorView& table : {rope.cos, rope.sin}) {
    if (!table) continue;
    FO_CHECK(table.rank() == 2 && table.size(0) == seq_len && table.size(1) == shape.head_dim / 2,
             "attend: a rotary table is %s, must be [%d, %d]", table.layout.to_string().c_str(),
             seq_len, shape.head_dim / 2);
  }
}

void check_same_streams(int layer, std::span<const TokenRange> updated,
                        std::span<const AttentionStream> streams) {
  bool same = updated.size() == streams.size();
  for (std::size_t i = 0; same && i < streams.size(); ++i) {
    same = updated[i] == TokenRange{streams[i].first_token, streams[i].num_tokens};
  }
  FO_CHECK(same, "attend: layer %d was updated with other streams than it is dispatched with",
           layer);
}

}  // namespace flashomni
