#!/usr/bin/env bash
# Every figure of the README's speed and traffic tables, in one run on an otherwise idle machine; prints markdown.
set -euo pipefail
cd "$(dirname "$0")"
python="${PYTHON:-../.venv/bin/python}"
export OMP_WAIT_POLICY=passive
section() {
    printf '\n## %s\n\n```\n' "$1"
    shift
    "$python" "$@"
    printf '```\n'
}
section "Training step, batch 1" bench_train.py
section "Training step, batch 4" bench_train.py --batch-size 4
section "Host Adam" bench_adam.py
section "Host offload against everything resident" bench_offload.py --images 320
section "Rasteriser against its twin" bench_raster.py
section "Plans" bench_plan.py
