// What the engine refuses, and the sentences it says.
#include "gmock/gmock.h"

#include "errors.h"
#include "idle_backend.h"
#include "toy.h"

namespace flashomni::test {
namespace {

std::string option_error(const EngineOptions& options) {
  IdleBackend backend;
  return error_of([&] { Engine(backend, options, make_policy("dense", {})); });
}

TEST(EngineContract, RejectsOptionsOutOfRange) {
  EXPECT_EQ(option_error({.warmup = 0}), "engine: warmup is 0, must be at least 1");
  EXPECT_EQ(option_error({.interval = 0}), "engine: interval is 0, must be at least 1");
  EXPECT_EQ(option_error({.order = 3}), "engine: order is 3, must be 0 to 2");
  EXPECT_EQ(option_error({.layer_cache = 1.5}), "engine: layer_cache is 1.5, must be 0 to 1");
  EXPECT_EQ(option_error({.ramp = -1}), "engine: ramp is -1, must be 0 or more");
  EXPECT_EQ(option_error({.block_q = 0}), "engine: block_q is 0, must be at least 1");
  EXPECT_EQ(option_error({.block_kv = 0}), "engine: block_kv is 0, must be at least 1");
  IdleBackend backend;
  EXPECT_EQ(error_of([&] { Engine(backend, {}, nullptr); }),
            "engine: policy is missing; make_policy(\"dense\", {}) runs dense");
}

class EngineContractOf : public testing::Test {
 protected:
  std::string begin_error(void (*change)(SequenceShape&)) {
    SequenceShape shape = toy_shape();
    change(shape);
    return error_of([&] { engine_.begin(shape, 4, 1); });
  }

  IdleBackend backend_;
  ToyModel model_{backend_};
  Engine engine_{backend_, {.warmup = 1}, make_policy("layer-cache", {})};
};

TEST_F(EngineContractOf, RejectsAnEmptySequence) {
  EXPECT_EQ(begin_error([](SequenceShape& s) { s.segments.clear(); }),
            "begin: the sequence has 0 tokens, must have at least 1");
  EXPECT_EQ(begin_error([](SequenceShape& s) { s.num_heads = 0; }),
            "begin: num_heads is 0, must be at least 1");
  EXPECT_EQ(begin_error([](SequenceShape& s) { s.head_dim = 0; }),
            "begin: head_dim is 0, must be at least 1");
  EXPECT_EQ(begin_error([](SequenceShape& s) { s.hidden_dim = 0; }),
            "begin: hidden_dim is 0, must be at least 1");
  EXPECT_EQ(begin_error([](SequenceShape& s) { s.num_layers = 0; }),
            "begin: num_layers is 0, must be at least 1");
  EXPECT_EQ(error_of([&] { engine_.begin(toy_shape(), 4, 0); }),
            "begin: num_branches is 0, must be at least 1");
}

TEST_F(EngineContractOf, WantsStepsInOrderAndEveryBranchOnce) {
  engine_.begin(toy_shape(), 2, 2);
  EXPECT_EQ(error_of([&] { engine_.begin_step(0, 2); }), "begin_step: branch is 2, must be 0 to 1");
  EXPECT_EQ(error_of([&] { engine_.begin_step(1, 0); }),
            "begin_step: step 1 cannot follow step -1: the 2 steps come in order and each runs "
            "all 2 branches");
  engine_.begin_step(0, 1);
  EXPECT_EQ(error_of([&] { engine_.begin_step(0, 1); }), "begin_step: step 0 already ran branch 1");
  EXPECT_EQ(error_of([&] { engine_.begin_step(1, 1); }),
            "begin_step: step 1 cannot follow step 0: the 2 steps come in order and each runs "
            "all 2 branches");
  engine_.begin_step(0, 0);
  engine_.begin_step(1, 0);
  engine_.begin_step(1, 1);
  EXPECT_EQ(error_of([&] { engine_.begin_step(2, 0); }),
            "begin_step: step 2 cannot follow step 1: the 2 steps come in order and each runs "
            "all 2 branches");
  EXPECT_EQ(error_of([&] { (void)engine_.step_kind(2); }), "step_kind: step is 2, must be 0 to 1");
}

TEST_F(EngineContractOf, NamesALayerOrBranchThatIsNotThere) {
  engine_.begin(toy_shape(), 4, 1);
  engine_.begin_step(0, 0);
  EXPECT_EQ(error_of([&] { engine_.attend(2, {}, {}); }), "attend: layer is 2, must be 0 to 1");
  EXPECT_EQ(error_of([&] { (void)engine_.is_layer_forecast(-1); }),
            "is_layer_forecast: layer is -1, must be 0 to 1");
  EXPECT_EQ(error_of([&] { (void)engine_.wants_modules(2); }),
            "wants_modules: layer is 2, must be 0 to 1");
  EXPECT_EQ(error_of([&] { (void)engine_.symbols(2, 0); }), "symbols: layer is 2, must be 0 to 1");
  EXPECT_EQ(error_of([&] { (void)engine_.symbols(0, 1); }), "symbols: branch is 1, must be 0 to 0");
}

TEST_F(EngineContractOf, NamesAModuleThatIsNotWantedOrNotThere) {
  const Tensor value = Tensor::host_zeros(DType::kF32, {kSeqLen, kHidden});
  engine_.begin(toy_shape(), 4, 1);
  engine_.begin_step(0, 0);
  EXPECT_EQ(error_of([&] { engine_.record_module(0, 1, value); }),
            "record_module: module 1 of layer 0 is not wanted on this step");
  model_.run(engine_, 0, 0, 0);  // records module 0
  engine_.begin_step(1, 0);
  EXPECT_EQ(error_of([&] { engine_.forecast_module(0, 1, value); }),
            "forecast_module: module 1 of layer 0 has no forecast on this step");
  EXPECT_EQ(error_of([&] { engine_.forecast_module(1, 0, value); }),
            "forecast_module: module 0 of layer 1 has no forecast on this step");
  EXPECT_EQ(error_of([&] { engine_.record_module(0, 0, value); }),
            "record_module: module 0 of layer 0 is not wanted on this step");
}

// One stream over the whole sequence, as layer 1 of the toy has, with one thing changed.
class StreamContract : public testing::Test {
 protected:
  StreamContract() { engine_.begin(toy_shape(), 3, 1); }

  std::string error(void (*change)(AttentionStream&, StreamWeights&, RopeTables&)) {
    AttentionStream stream = stream_;
    StreamWeights weights = weights_;
    RopeTables rope;
    stream.weights = &weights;
    change(stream, weights, rope);
    return error_of([&] { engine_.attend(1, {&stream, 1}, rope); });
  }

  IdleBackend backend_;
  Engine engine_{backend_, {.warmup = 1}, make_policy("dense", {})};
  Tensor x_ = Tensor::host_zeros(DType::kF32, {kSeqLen, kHidden});
  Tensor mlp_ = Tensor::host_zeros(DType::kF32, {kSeqLen, kMlpDim});
  Tensor out_ = Tensor::host_zeros(DType::kF32, {kSeqLen, kHidden});
  PackedWeight square_{{}, kHidden, kHidden, DType::kF32, kHeadDim};
  PackedWeight wide_{{}, kHidden, kHidden + kMlpDim, DType::kF32, 0};
  StreamWeights weights_{&square_, &square_, &square_, &wide_, {}, {}, {}, {}, {}, {}};
  AttentionStream stream_{0, kSeqLen, &weights_, x_, mlp_, out_};
};

TEST_F(StreamContract, AcceptsWhatFits) {
  EXPECT_EQ(error([](auto&, auto&, auto&) {}), "nothing was thrown");
}

TEST_F(StreamContract, RejectsStreamsThatDoNotCoverTheSequence) {
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.first_token = 3; }),
            "attend: stream 0 starts at token 3, not 0");
  EXPECT_EQ(error([](auto& stream, auto&, auto&) {
              stream.num_tokens = 20;
              stream.x = stream.x.slice(0, 0, 20);
              stream.mlp = stream.mlp.slice(0, 0, 20);
              stream.out = stream.out.slice(0, 0, 20);
            }),
            "attend: the streams have 20 tokens, the sequence has 25");
}

TEST_F(StreamContract, RejectsTensorsOfAnotherShapeOrDtype) {
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.x = stream.x.slice(0, 0, 24); }),
            "attend: x of stream 0 is [24, 16], must be [25, 16]");
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.x.dtype = DType::kBF16; }),
            "attend: x of stream 0 is bf16, the generation runs in f32");
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.mlp = stream.mlp.slice(0, 0, 24); }),
            "attend: mlp of stream 0 is [24, 12], must be [25, 12]");
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.out = stream.out.slice(1, 0, 8); }),
            "attend: out of stream 0 is [25, 8], must be [25, 16]");
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.residual = stream.out.slice(1, 0, 8); }),
            "attend: residual of stream 0 is [25, 8], must be [25, 16]");
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.gate = stream.x; }),
            "attend: stream 0 has a gate but no residual");
  EXPECT_EQ(error([](auto& stream, auto&, auto&) {
              stream.residual = stream.out;
              stream.gate = stream.x;
            }),
            "attend: gate of stream 0 is f32 [25, 16], must be f32 [16]");
  EXPECT_EQ(error([](auto& stream, auto&, auto& rope) { rope.sin = stream.x; }),
            "attend: a rotary table is [25, 16], must be [25, 4]");
}

TEST_F(StreamContract, RejectsWeightsThatDoNotFit) {
  EXPECT_EQ(error([](auto& stream, auto&, auto&) { stream.weights = nullptr; }),
            "attend: stream 0 has no weights");
  EXPECT_EQ(error([](auto&, auto& weights, auto&) { weights.k = nullptr; }),
            "attend: stream 0 has no k weight");
  EXPECT_EQ(error([](auto&, auto& weights, auto&) { weights.out = weights.q; }),
            "attend: out weight of stream 0 is [16, 16], must be [16, 28]");
  EXPECT_EQ(error([](auto&, auto& weights, auto&) { weights.q = weights.out; }),
            "attend: q weight of stream 0 is [16, 28], must be [16, 16]");
  EXPECT_EQ(error([](auto&, auto& weights, auto&) {
              static const PackedWeight kUngrouped{{}, kHidden, kHidden, DType::kF32, 0};
              weights.v = &kUngrouped;
            }),
            "attend: v weight of stream 0 is packed with column_group 0, must be the head_dim 8");
}

TEST_F(EngineContractOf, WantsTheStreamsOfTheUpdateOnDispatch) {
  Engine engine(backend_, {.warmup = 1, .block_q = kBlock, .block_kv = kBlock},
                make_policy("flashomni", {{"tau-q", "0"}, {"tau-kv", "0"}}));
  engine.begin(toy_shape(), 3, 1);
  engine.begin_step(0, 0);
  model_.run(engine, 0, 0, 0);  // text and image streams
  engine.begin_step(1, 0);
  PackedWeight square{{}, kHidden, kHidden, DType::kF32, kHeadDim};
  const StreamWeights weights{&square, &square, &square, &square, {}, {}, {}, {}, {}, {}};
  const Tensor x = Tensor::host_zeros(DType::kF32, {kSeqLen, kHidden});
  const AttentionStream joint{0, kSeqLen, &weights, x, {}, x};
  EXPECT_EQ(error_of([&] {
              engine.attend(0, {&joint, 1}, {});
            }),
            "attend: layer 0 was updated with other streams than it is dispatched with");
}

}  // namespace
}  // namespace flashomni::test
