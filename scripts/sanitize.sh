#!/usr/bin/env bash
# Runs the kernels under sanitizers; anything they find ends it with an error.
#   bash scripts/sanitize.sh address [pytest arguments]   AddressSanitizer and UndefinedBehaviorSanitizer under the tests of
#       kernels, render, image, optim, plan, stream and store (or those given)
#   bash scripts/sanitize.sh thread                       ThreadSanitizer: several lanes call kernels on one pool (no Python)
# PYTHON names the interpreter, CXX the compiler.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
kind="${1:?address or thread}"
shift
cxx="${CXX:-c++}"
build="$root/build/$kind"
source="$root/clm/kernels/src"
mkdir -p "$build"

if [ "$kind" = thread ]; then
  "$cxx" -std=c++17 -O1 -g -pthread -Wno-psabi -ffp-contract=off -fsanitize=thread -I"$source" "$root/scripts/pool_race.cpp" \
      "$source"/{pool,sort,move,knn,rows}.cpp -o "$build/pool_race"
  exec env TSAN_OPTIONS="halt_on_error=1" setarch "$(uname -m)" -R "$build/pool_race"  # -R: its map of memory needs it
fi
[ "$kind" = address ] || { echo "address or thread, not $kind" >&2; exit 2; }

python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$python" ] || python=python3
cd "$root"
mapfile -t targets < <("$python" -c "from clm.kernels import variants; print(*(f'clm_{v}' for v in variants()), sep=chr(10))")
# SKBUILD keeps the libraries inside the build folder instead of beside the Python face.
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="$cxx" -DCLM_SANITIZE=ON -DSKBUILD=ON >/dev/null
cmake --build "$build" --target "${targets[@]}"

runtime="$("$cxx" -print-file-name=libasan.so)"
stdcxx="$("$cxx" -print-file-name=libstdc++.so)"
[ -e "$runtime" ] || { echo "libasan not found beside $cxx: install the compiler's sanitizer runtime." >&2; exit 2; }

# Left out: what measures seconds, because sanitized kernels take several times as long; lanes without one of their waits,
# which read what is not there yet on purpose.
[ $# -gt 0 ] || set -- tests/{kernels,render,image,optim,plan,stream,store} -k "not milliseconds and not without_any_one_wait"
# Findings are written to build/address/found.PID, because pytest keeps what a test prints. Python itself never frees
# everything, so leaks are not reported; libstdc++ is preloaded so that exceptions are caught.
rm -f "$build"/found.*
CLM_KERNELS_DIR="$build" LD_PRELOAD="$runtime:$stdcxx" UBSAN_OPTIONS="print_stacktrace=1:log_path=$build/found" \
    ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:log_path=$build/found" "$python" -m pytest -p no:cacheprovider "$@"
