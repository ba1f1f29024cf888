#!/usr/bin/env bash
# Creates .venv and installs clm with its kernels. Arguments go to pip install: `bash scripts/setup.sh -e ".[test]"`.
# Installs everything itself; without a C++ compiler it takes the one inside the ziglang wheel.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- .
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "clm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }

# First and pinned: a bare `torch` would pull gigabytes of CUDA onto a machine that may have no GPU.
.venv/bin/python -c 'import torch' 2>/dev/null || pip install "torch==${CLM_TORCH:-2.13.0}"

if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null && [ -z "${CXX:-}" ]; then
    pip install "ziglang>=0.13"
    printf '#!/bin/sh\nexec "%s" -m ziglang c++ "$@"\n' "$PWD/.venv/bin/python" > .venv/bin/zig-c++
    printf '#!/bin/sh\nexec "%s" -m ziglang ar "$@"\n' "$PWD/.venv/bin/python" > .venv/bin/zig-ar
    chmod +x .venv/bin/zig-c++ .venv/bin/zig-ar
    export CXX="$PWD/.venv/bin/zig-c++"
    echo "no C++ compiler found: using the ziglang wheel's (its first compile takes about a minute)" >&2
fi
pip install "$@"
