// image_metrics.h -- how far two 8-bit pictures are apart.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/pipeline.h"  // Picture

namespace flashomni {

// Peak signal-to-noise ratio in dB over all channels, range 255, capped at 100 (equal pictures).
// Throws kInvalidArgument if the sizes differ.
double psnr_db(const Picture& a, const Picture& b);

// Structural similarity, averaged over channels: a uniform 7 x 7 window, sample covariance,
// K1 = 0.01, K2 = 0.03, windows wholly inside the picture. These are the defaults of
// scikit-image's structural_similarity. Throws kInvalidArgument if the sizes differ or a side is
// under 7.
double ssim(const Picture& a, const Picture& b);

// Largest difference of two channel values, 0..255.
int max_abs_diff(const Picture& a, const Picture& b);

}  // namespace flashomni
