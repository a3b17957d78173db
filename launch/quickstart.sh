#!/usr/bin/env bash
# The main job in miniature, on two cores, no hub, no GPU: make a teacher and a student, distil, score before and after.
#   bash launch/quickstart.sh            SEED=1 bash launch/quickstart.sh steps=20
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh

seed=${SEED:-0}
models=.cache/quickstart/seed-$seed
recipe=recipes/quickstart/quickstart.yaml
pair=(student.model="$models/student" teacher.model="$models/teacher" prompts.path="$models/train.jsonl" seed="$seed")
changes=()
for argument in "$@"; do [[ $argument == -* || $argument != *=* ]] || changes+=("$argument"); done
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # models this small gain nothing from a second thread, and lose much on busy cores
nvidia-smi -L 2> /dev/null | grep -q '^GPU ' || export DS_ACCELERATOR=cpu
export PATH="$PWD/.venv/bin:$PATH"
echo "1/3 a teacher and a student, made once a seed (two to seven minutes)"
python recipes/quickstart/make_models.py --seed "$seed"
echo "2/3 everything that can be checked before a model loads"
python -m opd doctor "$recipe" "${pair[@]}" "${changes[@]}"
echo "3/3 distil: 240 steps, scored before, during and after (three to eight minutes)"
accelerate launch --config_file launch/accelerate/cpu-1.yaml -m opd train "$recipe" "${pair[@]}" "$@"
