#!/usr/bin/env bash
# Sees to the Debian packages that a job needs: setup.sh build|test|python|bench|ci
# Installs what is missing when run as root; otherwise prints the one line to run and stops.
set -euo pipefail

packages=(cmake ninja-build g++ pkg-config libhwy-dev nlohmann-json3-dev libcli11-dev libstb-dev)
case "${1:-build}" in
  build) ;;
  test) packages+=(libgtest-dev libgmock-dev python3 git)
        # Nobody needs to install a browser by hand: without it the tests of drawn pages are skipped.
        [ "$(id -u)" != 0 ] || packages+=(chromium) ;;
  python) packages+=(python3-dev python3-venv) ;;
  bench) packages+=(libbenchmark-dev) ;;
  ci) packages+=(libgtest-dev libgmock-dev python3 git libbenchmark-dev clang-format
                 python3-dev python3-venv chromium ccache) ;;
  *) echo "setup.sh: unknown job '$1', expected build, test, python, bench or ci" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "setup.sh: not a Debian system; these must be there: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "These packages are missing; install them and run make again:" >&2
  echo "  sudo apt-get install -y ${missing[*]}" >&2
  exit 1
fi
echo "Installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
