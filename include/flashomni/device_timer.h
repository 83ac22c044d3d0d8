// device_timer.h -- times work that is queued on a device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/tensor.h"  // Stream

namespace flashomni {

class DeviceTimer {
 public:
  virtual ~DeviceTimer() = default;
  // Names the moment at which `stream` gets here: 0, 1, ... since the last reset(). Waits for
  // nothing.
  virtual int mark(Stream stream) = 0;
  // Between two marks; waits until the device has passed both.
  virtual double seconds(int from, int to) = 0;
  virtual void reset() = 0;
};

}  // namespace flashomni
