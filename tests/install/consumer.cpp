#include <flashomni/backend.h>
#include <cstdio>

int main() {
  const auto backend = flashomni::make_backend("auto");
  const flashomni::Tensor x = backend->allocate(flashomni::DType::kF32, {2, 3});
  std::printf("%s: allocated %s\n", backend->description().c_str(),
              x.view().layout.to_string().c_str());
  return 0;
}
