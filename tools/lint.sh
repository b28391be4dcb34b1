#!/usr/bin/env bash
# clang-format over every source, clang-tidy over every file of src but the CUDA backend's, with the compile database
# of a build.
#   tools/lint.sh [BUILD]      build/ci if none is named
# A file whose text, headers and flags have not changed since it was last found clean is not read again.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/ci}

# Everything git knows or could add, of the tree as it is.
sources() { git ls-files --cached --others --exclude-standard "$@" | while read -r f; do [ ! -f "$f" ] || echo "$f"; done; }

sources '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format-14 --dry-run --Werror
echo "clang-format: $(sources '*.h' '*.cpp' '*.cu' '*.cuh' | wc -l) files are clean"

if [ ! -f "$build/compile_commands.json" ]; then
  echo "clang-tidy needs $build/compile_commands.json: cmake --preset $(basename "$build")" >&2
  exit 1
fi
cache=build/tidy
mkdir -p $cache
common=$({ sources 'src/*.h' 'src/*.inc' 'include/*.h' 'models/*.h' .clang-tidy CMakeLists.txt 'cmake/*' |
  xargs cat; dpkg-query -W 2>/dev/null || true; } | sha1sum | cut -c1-40)
tidy() {
  mark=$cache/$(printf '%s %s\n' "$common" "$1" | cat - "$1" | sha1sum | cut -c1-40)
  [ ! -f "$mark" ] || return 0
  if out=$(clang-tidy-14 -p "$build" --quiet --extra-arg=-Wno-unknown-warning-option "$1" 2>&1); then
    touch "$mark"
  else
    printf '%s\n' "$out" | grep -vE '^([0-9]+ warnings (generated|treated)|Suppressed |Use -header-filter)' || true
    return 1
  fi
}
export -f tidy
export build cache common
if ! sources 'src/*.cpp' ':!src/ops/cuda' | xargs -P "$(nproc)" -I{} bash -c 'tidy {}'; then
  echo "clang-tidy: see above" >&2
  exit 1
fi
echo "clang-tidy: $(sources 'src/*.cpp' ':!src/ops/cuda' | wc -l) files are clean"
