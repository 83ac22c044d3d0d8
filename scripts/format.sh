#!/usr/bin/env bash
# clang-format over every C++ and CUDA source that git tracks; --check only reports.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=-i
[ "${1:-}" = --check ] && mode="--dry-run -Werror"
git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 -r clang-format --style=file $mode
