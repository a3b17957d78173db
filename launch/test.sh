#!/usr/bin/env bash
# Everything that review asks: lint, format, all tests (real vLLM and DeepSpeed ranks among them). Under 15 minutes.
#   bash launch/test.sh                  bash launch/test.sh tests/head -k gradient
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
# A file a worker: models and folders that its tests share are made once.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
