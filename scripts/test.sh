#!/usr/bin/env bash
# Set-up and tests, from a fresh clone. Arguments go to pytest: `bash scripts/test.sh tests/plan -k order`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh ".[test,dev]"
export OMP_WAIT_POLICY=passive
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Tests run against the installed package, as a user has it: away from the checkout's own clm/.
tests="$PWD/tests"
cd "$(mktemp -d)"
exec "$OLDPWD/.venv/bin/python" -m pytest -c "$OLDPWD/pyproject.toml" --rootdir "$OLDPWD" --durations=10 "${@:-$tests}"
