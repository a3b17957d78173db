#!/usr/bin/env bash
# Everything that review asks: lint, format, all tests (real vLLM and DeepSpeed ranks among them). 12 to 20 minutes on two cores.
#   bash launch/test.sh                  bash launch/test.sh tests/head -k gradient
set -euo pipefail
cd "$(dirname "$0")/.."
# The tests are for a CPU: where there is a GPU, or a build for one, they get their own environment, and see none.
venv=.venv
if nvidia-smi -L 2> /dev/null | grep -q '^GPU ' || grep -qs '^cuda' .venv/.opd-ready; then venv=.venv-cpu; fi
OPD_BUILD=cpu OPD_VENV=$venv bash launch/setup.sh
export CUDA_VISIBLE_DEVICES= PATH="$PWD/$venv/bin:$PATH"
ruff check .
ruff format --check .
# A file a worker: models and folders that its tests share are made once.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
