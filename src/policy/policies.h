// policies.h -- the constructors of the built-in policies, one for each row of registry.cpp, and
// the selections that more than one of them is made of.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "policy/options.h"

namespace flashomni {

using PolicyPtr = std::unique_ptr<SparsityPolicy>;

PolicyPtr make_dense(const OptionReader& options);
PolicyPtr make_flashomni(const OptionReader& options);
PolicyPtr make_static(const OptionReader& options);

PolicyPtr make_spargeattn(const OptionReader& options);
PolicyPtr make_topk(const OptionReader& options);
PolicyPtr make_streaming(const OptionReader& options);
PolicyPtr make_sliding_tile(const OptionReader& options);
PolicyPtr make_radial(const OptionReader& options);
PolicyPtr make_arrow_window(const OptionReader& options);

PolicyPtr make_guidance(const OptionReader& options);
PolicyPtr make_taylorseer(const OptionReader& options);
PolicyPtr make_fora(const OptionReader& options);
PolicyPtr make_layer_cache(const OptionReader& options);
PolicyPtr make_pab(const OptionReader& options);
PolicyPtr make_head_share(const OptionReader& options);
PolicyPtr make_first_block(const OptionReader& options);

// Caches every block of every head, text included.
void cache_everything(SparseSymbols& symbols);

// Caches with `cache` and skips with `skip` in the query blocks that stay live.
PolicyPtr compose(std::string_view name, PolicyPtr skip, PolicyPtr cache,
                  std::optional<FlashOmniOptions> selection = {});

// Skipping by mass (spargeattn.cpp) and caching by text (guidance.cpp): the two halves of
// FlashOmniOptions, each of which reads its own thresholds.
PolicyPtr make_mass_skip(const FlashOmniOptions& options);
void skip_low_mass(const FlashOmniOptions& options, double ramp, const BlockScores& scores,
                   SparseSymbols& symbols);
PolicyPtr make_text_cache(const FlashOmniOptions& options);
SelectionScores cache_unguided(const FlashOmniOptions& options, double ramp,
                               const BlockScores& scores, SparseSymbols& symbols);

}  // namespace flashomni
