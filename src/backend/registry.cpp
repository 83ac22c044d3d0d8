#include "backend/registry.h"

#include "backend/cpu/cpu_backend.h"
#ifdef FO_HAS_CUDA
#include "backend/cuda/cuda_backend.h"
#endif
#include "backend/reference/reference.h"
#include "core/check.h"

namespace flashomni {
namespace {

// Best first: "auto" is the first that is available.
constexpr BackendEntry kBackends[] = {
    {"cpu", make_cpu_backend, probe_cpu_backend},
#ifdef FO_HAS_CUDA
    // Behind cpu: it has no f32 kernels yet, and "auto" promises to run whatever it is given.
    {"cuda", make_cuda_backend, probe_cuda_backend},
#endif
    {"reference", make_reference_backend, probe_reference_backend},
};

}  // namespace

std::unique_ptr<Backend> make_backend(std::string_view name, const BackendOptions& options) {
  std::string known;
  for (const BackendEntry& entry : kBackends) {
    known += ", " + std::string(entry.name);
    if (name != "auto" && name != entry.name) continue;
    const BackendProbe probe = entry.probe();
    if (probe.available) return entry.make(options);
    if (name != "auto") {
      FO_FAIL(kUnsupported, "make_backend: %s cannot run on this machine: %s",
              std::string(name).c_str(), probe.detail.c_str());
    }
  }
  FO_FAIL(kInvalidArgument, "make_backend: unknown backend '%s', expected auto%s",
          std::string(name).c_str(), known.c_str());
}

std::vector<BackendInfo> list_backends() {
  std::vector<BackendInfo> infos;
  for (const BackendEntry& entry : kBackends) {
    const BackendProbe probe = entry.probe();
    infos.push_back({entry.name, probe.available, probe.detail});
  }
  return infos;
}

}  // namespace flashomni
