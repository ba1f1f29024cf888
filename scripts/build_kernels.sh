#!/usr/bin/env bash
# Builds the CPU kernels with the C++ compiler alone, for machines without CMake (flags as in CMakeLists.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
build() {
  "${CXX:-c++}" -std=c++17 -O3 -fPIC -shared -pthread -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=off \
    "${@:2}" clm/kernels/src/*.cpp -o "clm/kernels/libclm_$1.so"
}
build base &
if [ "$(uname -m)" = x86_64 ]; then
  build avx2 -mavx2 -mfma &
  build avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mprefer-vector-width=512 &
fi
for job in $(jobs -p); do wait "$job"; done
