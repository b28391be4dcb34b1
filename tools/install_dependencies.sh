#!/usr/bin/env bash
# Installs what building and testing hadal takes on Debian 12, and only what is missing, with apt-get as root
# or through sudo.
#   tools/install_dependencies.sh build    for the hadal binary
#   tools/install_dependencies.sh test     also for the tests, the benches, the fuzz targets and lint
#   tools/install_dependencies.sh aarch64  for the kernels' tests under qemu
#   tools/install_dependencies.sh browser  for the tests of the server's page
set -euo pipefail

packages=(g++ cmake ninja-build ccache pkg-config libfmt-dev libexpected-dev libpcre2-dev nlohmann-json3-dev
  libsimdjson-dev libcli11-dev libxxhash-dev libsqlite3-dev libboost1.81-dev libedit-dev robin-map-dev)
case ${1:-} in
  build) ;;
  test)
    packages+=(git ca-certificates libgtest-dev libgmock-dev libbenchmark-dev clang-14 libclang-rt-14-dev
      clang-format-14 clang-tidy-14 python3 python3-venv)
    ;;
  aarch64) packages=(cmake ninja-build libfmt-dev libexpected-dev googletest g++-aarch64-linux-gnu qemu-user-static) ;;
  browser) packages=(chromium chromium-driver) ;;
  *)
    echo "usage: tools/install_dependencies.sh build|test|aarch64|browser" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "not a Debian system: these packages, or what they are called here, are taken to be installed:" >&2
  echo "  ${packages[*]}" >&2
  exit 0
fi
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null; then
  as_root=(sudo)
else
  echo "packages are missing, and installing them takes root or sudo. As root, run:" >&2
  echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing with apt-get: ${missing[*]}" >&2
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update -qq &&
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "apt-get could not install: ${missing[*]} (the whole log is in $log)" >&2
  exit 1
fi
rm -f "$log"
