#!/usr/bin/env bash
# The main job in miniature, on two cores, no hub, no GPU: make a teacher and a student, distil, score before and after.
#   bash launch/quickstart.sh            SEED=1 bash launch/quickstart.sh steps=20
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh

seed=${SEED:-0}
models=.cache/quickstart/seed-$seed
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
nvidia-smi -L > /dev/null 2>&1 || export DS_ACCELERATOR=cpu
export PATH="$PWD/.venv/bin:$PATH"
python recipes/quickstart/make_models.py --seed "$seed"
accelerate launch --config_file launch/accelerate/cpu-1.yaml -m opd train recipes/quickstart/quickstart.yaml \
    student.model="$models/student" teacher.model="$models/teacher" prompts.path="$models/train.jsonl" \
    seed="$seed" "$@"
