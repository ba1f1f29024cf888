#!/usr/bin/env bash
# Set-up and tests, from a fresh clone. Arguments go to pytest: `bash scripts/test.sh tests/plan -k order`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh -e ".[test,dev]"  # editable: the kernels are built into the checkout, beside the tests
export OMP_WAIT_POLICY=passive
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A file per process at a time: the tests of a file share what they made.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --durations=10 "$@"
