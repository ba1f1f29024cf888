#!/usr/bin/env bash
# From a fresh clone to a trained, rendered, exported scene: sets up .venv, trains data/demo out of core, prints where to look.
# The folder (demo_out, or the first argument) is made anew; one that this script did not make is never removed.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-demo_out}"
mark=".made_by_clm_demo"
if [ -e "$out" ] && [ ! -e "$out/$mark" ] && { [ ! -d "$out" ] || [ -n "$(ls -A "$out")" ]; }; then
    echo "error: $out is there and was not made by this script. Name another folder: bash scripts/demo.sh DIR" >&2
    exit 2
fi
bash scripts/setup.sh .
rm -rf "$out"
mkdir -p "$out"
touch "$out/$mark"
clm=".venv/bin/clm"
# 64 MiB of "device" memory: a third of the trained scene's state, so it is trained from the host.
"$clm" train data/demo -o "$out/run" --iterations 3000 --offload host --gpu-memory 64MiB
"$clm" render "$out/run" -o "$out/test_views"
"$clm" render "$out/run" --path ellipse --frames 24 -o "$out/path"
"$clm" export "$out/run" "$out/scene.ply"
.venv/bin/python scripts/show_receipt.py "$out/run"
echo "report of the run:   $out/run/report.html"
echo "rendered test views: $out/test_views"
echo "camera path:         $out/path"
echo "for your viewer:     $out/scene.ply"
