// output_case.h -- a layer's output projection over several steps, and its oracle.
#pragma once

#include "gemm_case.h"

namespace flashomni::test {

struct OutputShape {
  int head_dim = 24, out_features = 40, mlp_dim = 0;
  bool bias = true;
  bool compact_cache = false;  // in the dtype that the backend asks for, instead of f32
  bool adds = false;           // to a residual; `out` is that
  bool gate = true;            // if it adds
  bool from_words = false;     // how plans are built
};

// One layer with its weight and its bias cache; each step brings new inputs and symbols.
class OutputLayer {
 public:
  OutputLayer(Backend& backend, const Sparsity& first, TokenRange range, const OutputShape& shape,
              int order, DType dtype, unsigned seed = 1)
      : backend_(backend),
        sparsity_(first),
        range_(range),
        shape_(shape),
        order_(order),
        dtype_(dtype),
        term_dtype_(shape.compact_cache ? backend.bias_cache_dtype(dtype) : DType::kF32) {
    const index_t in = first.num_heads * shape.head_dim + shape.mlp_dim;
    const Layout out{first.batch, range.count, shape.out_features};
    weight_ = random_tensor(dtype, {shape.out_features, in}, seed,
                            1 / std::sqrt(static_cast<double>(in)));
    if (shape.bias) bias_ = random_tensor(DType::kF32, {shape.out_features}, seed + 1);
    if (shape.adds && shape.gate) gate_ = random_tensor(DType::kF32, {shape.out_features}, seed);
    for (int o = 0; o <= order; ++o) {
      terms_.push_back(canary_tensor(term_dtype_, out));
      expected_terms_.emplace_back(static_cast<std::size_t>(out.num_elements()));
    }
    valid_order_ = canary_tensor(DType::kU8, {first.batch, num_blocks(first.q)});
    expected_order_.resize(static_cast<std::size_t>(first.batch) * num_blocks(first.q));
    new_inputs(seed + 2);
  }

  void new_inputs(unsigned seed) {
    const index_t batch = sparsity_.batch;
    o = random_tensor(dtype_, {batch, range_.count, sparsity_.num_heads * shape_.head_dim}, seed);
    mlp = shape_.mlp_dim ? random_tensor(dtype_, {batch, range_.count, shape_.mlp_dim}, seed + 1)
                         : Tensor();
    out = canary_tensor(shape_.adds ? DType::kF32 : dtype_,
                        {batch, range_.count, shape_.out_features});
    if (!shape_.adds) return;
    const Tensor start = random_tensor(DType::kF32, out.view().layout, seed + 2);
    for_each_element([&](int, int, int, int i) { store_float(out, i, load_float(start, i)); });
  }

  // An update step; `symbols` become the layer's.
  void update(const Sparsity& symbols, float steps) {
    const GemmPlan plan =
        make_plan(backend_, symbols, range_, updated_ ? &sparsity_ : nullptr, shape_.from_words);
    expect_update(symbols, steps);
    sparsity_ = symbols;
    updated_ = true;
    call(
        [&](const OutputProjection& projection, const BiasCacheView& cache) {
          gemm_o_update(backend_, plan, projection, steps, cache);
        },
        bias_);
  }

  void dispatch(const std::vector<float>& coefficients) {
    const GemmPlan plan = make_plan(backend_, sparsity_, range_, nullptr, shape_.from_words);
    expect_dispatch(coefficients);
    call(
        [&](const OutputProjection& projection, const BiasCacheView& cache) {
          gemm_o_dispatch(backend_, plan, projection, coefficients, cache);
        },
        {});
  }

  // The results of the last call, and everything that is remembered.
  void expect_correct() const {
    expect_matches(out, expected_out_, "out");
    for (int term = 0; term <= order_; ++term) {
      expect_matches(terms_[term], expected_terms_[term], term == 0 ? "terms[0]" : "terms[o]");
    }
    for (index_t i = 0; order_ >= 0 && i < valid_order_.num_elements(); ++i) {
      const auto wanted = expected_order_[i] ? static_cast<std::uint32_t>(*expected_order_[i])
                                             : canary_bits(DType::kU8);
      EXPECT_EQ(bits_of(valid_order_, i), wanted) << "valid_order of item and block " << i;
    }
  }

  Tensor o, mlp, out;  // of the current step
  const Tensor& term(int order) const { return terms_[order]; }
  int valid_order(index_t i) const { return valid_order_.as<std::uint8_t>()[i]; }
  Tensor& weight() { return weight_; }
  Tensor& bias() { return bias_; }

 private:
  template <typename Call>
  void call(Call&& operation, const Tensor& bias) {
    const PackedWeight weight = backend_.pack_weight(weight_, dtype_, 0);
    const Tensor device_o = upload(backend_, o), device_mlp = upload_if(backend_, mlp);
    const Tensor device_bias = upload_if(backend_, bias), device_out = upload(backend_, out);
    const Tensor device_order = upload(backend_, valid_order_);
    std::vector<Tensor> device_terms;
    BiasCacheView cache{order_, {}, device_order};
    for (int term = 0; term <= order_; ++term) {
      device_terms.push_back(upload(backend_, terms_[term]));
      cache.terms[term] = device_terms.back();
    }
    OutputProjection projection{&weight, device_bias, device_o, device_mlp};
    const Tensor device_gate = upload_if(backend_, gate_);
    (shape_.adds ? projection.residual : projection.out) = device_out;
    projection.gate = device_gate;
    operation(projection, cache);
    download(backend_, device_out, out);
    download(backend_, device_order, valid_order_);
    for (int term = 0; term <= order_; ++term) {
      download(backend_, device_terms[term], terms_[term]);
    }
  }

  // Sum of a row's heads that are live, or cached, and of its mlp part.
  enum class Part { kLive, kCached, kMlp };
  Expected part(const Sparsity& symbols, int item, int row, int feature, Part which) const {
    const int heads = symbols.num_heads, attention_dim = heads * shape_.head_dim;
    const std::size_t w = static_cast<std::size_t>(feature) * (attention_dim + shape_.mlp_dim);
    const std::size_t x = static_cast<std::size_t>(item) * range_.count + row;
    if (which == Part::kMlp) {
      if (!shape_.mlp_dim) return {};
      return product(mlp_values_, x * shape_.mlp_dim, weight_values_, w + attention_dim,
                     shape_.mlp_dim);
    }
    Expected sum;
    for (int head = 0; head < heads; ++head) {
      if (is_live(symbols, item, head, range_.first + row) != (which == Part::kLive)) continue;
      const int column = head * shape_.head_dim;
      sum = sum + product(o_values_, x * attention_dim + column, weight_values_, w + column,
                          shape_.head_dim);
    }
    return sum;
  }

  // Calls visit(item, row, feature, element) for all rows within an item's length.
  template <typename Visit>
  void for_each_element(Visit&& visit) {
    o_values_ = values_of(o);
    weight_values_ = values_of(weight_);
    if (mlp) mlp_values_ = values_of(mlp);
    expected_out_.assign(static_cast<std::size_t>(out.num_elements()), std::nullopt);
    for (int i = 0; i < static_cast<int>(out.num_elements()); ++i) {
      const int feature = i % shape_.out_features, row = i / shape_.out_features % range_.count;
      const int item = i / shape_.out_features / range_.count;
      if (range_.first + row < sparsity_.q.length(item)) visit(item, row, feature, i);
    }
  }

  // What becomes of `value` in element i of `out`, which is as before the call.
  Expected finished(Expected value, int feature, int i) const {
    if (!shape_.adds) return stored(dtype_, value);
    const double gate = gate_ ? load_float(gate_, feature) : 1;
    return Expected{load_float(out, i), 0} + gate * value;
  }

  int order_index(int item, int row) const {
    return item * num_blocks(sparsity_.q) + block_of(sparsity_.q, range_.first + row);
  }

  bool cached_heads_stay(const Sparsity& symbols, int item, int row) const {
    for (int head = 0; updated_ && head < symbols.num_heads; ++head) {
      const int token = range_.first + row;
      if (is_live(symbols, item, head, token) != is_live(sparsity_, item, head, token)) {
        return false;
      }
    }
    return updated_;
  }

  void expect_update(const Sparsity& symbols, float steps) {
    auto new_order = expected_order_;
    for_each_element([&](int item, int row, int feature, int i) {
      Expected sum{bias_ ? load_float(bias_, feature) : 0, 0};
      sum = sum + part(symbols, item, row, feature, Part::kCached);
      expected_out_[i] = finished(sum + part(symbols, item, row, feature, Part::kLive) +
                                      part(symbols, item, row, feature, Part::kMlp),
                                  feature, i);
      if (order_ < 0) return;
      const int block = order_index(item, row);
      const bool stay = cached_heads_stay(symbols, item, row);
      const int valid = stay ? std::min(*expected_order_[block] + 1, order_) : 0;
      new_order[block] = valid;
      Expected term = sum;
      for (int o = 0; o <= valid; ++o) {
        const Expected old = expected_terms_[o][i].value_or(Expected{});
        expected_terms_[o][i] = stored(term_dtype_, term);
        term = 1.0 / steps * (term + -1.0 * old);
      }
    });
    expected_order_ = std::move(new_order);
  }

  void expect_dispatch(const std::vector<float>& coefficients) {
    for_each_element([&](int item, int row, int feature, int i) {
      const int orders = static_cast<int>(coefficients.size());
      Expected sum;
      for (int o = 0; o <= *expected_order_[order_index(item, row)] && o < orders; ++o) {
        sum = sum + static_cast<double>(coefficients[o]) * *expected_terms_[o][i];
      }
      expected_out_[i] = finished(sum + part(sparsity_, item, row, feature, Part::kLive) +
                                      part(sparsity_, item, row, feature, Part::kMlp),
                                  feature, i);
    });
  }

  Backend& backend_;
  Sparsity sparsity_;  // of the last update
  TokenRange range_;
  OutputShape shape_;
  int order_;
  DType dtype_, term_dtype_;
  bool updated_ = false;
  Tensor weight_, bias_, gate_, valid_order_;
  std::vector<Tensor> terms_;
  std::vector<double> o_values_, mlp_values_, weight_values_;
  ExpectedTensor expected_out_;
  std::vector<ExpectedTensor> expected_terms_;
  std::vector<std::optional<int>> expected_order_;
};

}  // namespace flashomni::test
