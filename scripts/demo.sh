#!/usr/bin/env bash
# From a fresh clone to a trained, rendered, exported scene: sets up .venv, trains data/demo out of core, prints where to look.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-demo_out}"
bash scripts/setup.sh .
rm -rf "$out"
clm=".venv/bin/clm"
# 8 MiB of "device" memory: less than the trained scene's state, so it is trained from the host.
"$clm" train data/demo -o "$out/run" --iterations 2000 --offload host --gpu-memory 8MiB
"$clm" render "$out/run" -o "$out/test_views"
"$clm" render "$out/run" --path ellipse --frames 24 -o "$out/path"
"$clm" export "$out/run" "$out/scene.ply"
.venv/bin/python scripts/show_receipt.py "$out/run"
echo "rendered test views: $out/test_views"
echo "camera path:         $out/path"
echo "for your viewer:     $out/scene.ply"
