#!/usr/bin/env bash
# Everything that review asks: lint, format, all tests (real vLLM and DeepSpeed ranks among them). Under 15 minutes.
#   bash launch/test.sh                  bash launch/test.sh tests/head -k gradient
set -euo pipefail
cd "$(dirname "$0")/.."
# The tests are for a CPU: where there is a GPU they get their own environment, and don't see it.
venv=.venv
nvidia-smi -L > /dev/null 2>&1 && venv=.venv-cpu
OPD_BUILD=cpu OPD_VENV=$venv bash launch/setup.sh
export CUDA_VISIBLE_DEVICES= PATH="$PWD/$venv/bin:$PATH"
ruff check .
ruff format --check .
# A file a worker: models and folders that its tests share are made once.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
