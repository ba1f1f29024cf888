#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer in their own folder and runs the kernel tests on them.
# Usage: bash scripts/asan.sh [pytest arguments; default: tests/render tests/optim]. PYTHON names the interpreter.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
build="$root/build/asan"
python="${PYTHON:-python3}"
[ -x "$root/.venv/bin/python" ] && python="${PYTHON:-$root/.venv/bin/python}"

# SKBUILD keeps the libraries inside the build folder instead of beside the Python face.
cmake -S "$root" -B "$build" -G Ninja -DCLM_SANITIZE=ON -DSKBUILD=ON -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$build"

runtime="$(${CXX:-c++} -print-file-name=libasan.so)"
stdcxx="$(${CXX:-c++} -print-file-name=libstdc++.so)"
[ -e "$runtime" ] || { echo "libasan not found beside ${CXX:-c++}: install the compiler's sanitizer runtime." >&2; exit 2; }

cd "$root"
[ $# -gt 0 ] || set -- tests/render tests/optim
# Python itself never frees everything, so leaks are not reported; libstdc++ is preloaded so that exceptions are caught.
CLM_KERNELS_DIR="$build" LD_PRELOAD="$runtime:$stdcxx" ASAN_OPTIONS="detect_leaks=0:abort_on_error=1" \
    "$python" -m pytest -p no:cacheprovider "$@"
