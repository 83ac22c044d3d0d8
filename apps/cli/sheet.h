// sheet.h -- pictures side by side with captions.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "flashomni/pipeline.h"  // Picture

namespace flashomni::cli {

struct Panel {
  const Picture* picture;
  std::string caption;  // ASCII
};

// The panels, which are of one size, from left to right under a strip with their captions.
Picture side_by_side(const std::vector<Panel>& panels);

// The pictures from top to bottom, on white.
Picture stack(const std::vector<Picture>& pictures);

// |a - b| times `gain`, clipped to 255.
Picture difference(const Picture& a, const Picture& b, int gain);

}  // namespace flashomni::cli
