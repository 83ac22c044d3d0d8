#!/usr/bin/env bash
# Builds the CUDA backend and tries it on this GPU: scripts/gpu_check.sh [MODE] [OUT] [ARGUMENTS]
#   check     (default) tests/cuda and every operator against fp64, on random shapes and masks
#   sanitize  also a part of the tests under compute-sanitizer: memcheck and synccheck
#   bench     also times the operators, and writes a JSON file for each into OUT (default: out/gpu)
#   peers     builds the Python package into OUT/site instead, tests it on the GPU's torch tensors,
#             and times the operators beside PyTorch's: bench/peers.py ARGUMENTS -> OUT/peers.json
# Needs nvcc 13, a driver, and the packages of scripts/setup.sh build; `peers` also torch, pytest,
# NumPy, scikit-build-core and nanobind in $PYTHON (default: python3). Both kinds of build share
# build/cuda, so that the library is compiled once.
set -euo pipefail
cd "$(dirname "$0")/.."
mode="${1:-check}" out="${2:-out/gpu}" jobs="${JOBS:-$(nproc)}"
mkdir -p "$out"
out=$(cd "$out" && pwd)

peers() {
  local python="${PYTHON:-python3}"
  CMAKE_BUILD_PARALLEL_LEVEL="$jobs" "$python" -m pip install --quiet --no-index --no-deps \
    --no-build-isolation --upgrade --target "$out/site" . \
    --config-settings=build-dir=build/cuda --config-settings=cmake.define.FLASHOMNI_BUILD_CUDA=ON
  export PYTHONPATH="$out/site" PYTHONUNBUFFERED=1
  local failed=0
  "$python" -m pytest -q -rs tests/python/test_cuda*.py || failed=1
  "$python" bench/peers.py --output "$out/peers.json" "$@" || failed=1
  return "$failed"
}
if [ "$mode" = peers ]; then
  peers "${@:3}"
  exit
fi

cmake --preset cuda -DFLASHOMNI_BUILD_CLI=ON >/dev/null
cmake --build --preset cuda -j "$jobs" --target flashomni_cli cuda_test
tool=build/cuda/flashomni tests=build/cuda/tests/cuda_test
"$tool" info
"$tests"
"$tool" selftest

sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 9 "$tests" --gtest_filter="$2"
}
if [ "$mode" = sanitize ]; then
  some='GpuAttention.TextAtEitherEnd:GpuAttention.TwoStreamsAtOnce:GpuAttention.CutItems*'
  some+=':GpuPolicy.EveryShape:GpuPolicy.WritesEvery*:GpuPlan.HasTheListsOfTheHost:GpuPlan.Fol*'
  some+=':GpuPolicy.SelectsInARow:GpuCachedRows.*:GpuGemmPlan.HasTheListsOfTheHost'
  some+=':GpuGemmPlan.FollowsItsInputs*:GpuGemmQ.MoreTiles*:GpuGemmO.MoreTiles*'
  some+=':GpuGemmQ.OneStream*:GpuGemmO.OneStream*:GpuGemmO.OrdersGrow*:GpuOperations.*'
  sanitize memcheck "$some"
  sanitize synccheck "$some"
  # Not racecheck: it reports whatever is guarded by an mbarrier on which one lane arrives for its
  # warp, see docs/kernels/attention_sm90.md.
fi
[ "$mode" = bench ] || exit 0

sparsity=0,0.25,0.5,0.75,0.9
for seq in 4608 16896 33024; do
  for kind in skip cache mix; do
    for pattern in random clustered skewed; do
      "$tool" bench attention --backend cuda --dtype bf16 --seq "$seq" --heads 24 --head-dim 128 \
        --block 128 --kind "$kind" --pattern "$pattern" --sparsity "$sparsity" --json \
        >"$out/attention-$kind-$pattern-$seq.json"
    done
  done
  for operator in policy plan gemm-plan; do
    "$tool" bench "$operator" --backend cuda --dtype bf16 --seq "$seq" --heads 24 --head-dim 128 \
      --block 128 --text 512 --sparsity 0,0.5,0.9 --json >"$out/$operator-$seq.json"
  done
  for operator in gemm-q gemm-o; do
    "$tool" bench "$operator" --backend cuda --dtype bf16 --seq "$seq" --heads 24 --head-dim 128 \
      --block 128 --sparsity 0,0.5,0.75,0.9 --json >"$out/$operator-$seq.json"
  done
done
python3 - "$out" <<'PY'
import json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    for row in json.loads(path.read_text())["rows"]:
        print(f"{row['op']:10} {row.get('kind', ''):6} {row.get('pattern', ''):9} "
              f"N={row['seq']:<6} s={row['sparsity']:<5} "
              f"{row['ms_median']:8.3f} ms {row['tflops_done']:6.0f} TFLOP/s "
              f"of dense {row['ms_median'] / row['dense_ms']:.3f} "
              f"efficiency {row['efficiency'] or 0:.3f} error {row['max_rel_err']:.1e}")
PY
