#!/bin/sh
# Checks the copies between a GPU and slots on this machine, from the checkout:
#
#     tools/gpu_check.sh PYTHON [arguments of benchmarks/device.py]
#
# PYTHON has torch and numpy; nothing is installed. Where NVIDIA's compute-sanitizer is found, the round
# trips run a second time under its memcheck. Without a GPU, what can be checked without one is.
set -eu

python=$1
shift
script=$(dirname "$0")/../benchmarks/device.py

"$python" -c 'import numpy, torch' 2>/dev/null || {
    echo "gpu-check needs torch and numpy, which $python does not have; choose another: make gpu-check PYTHON=..." >&2
    exit 1
}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU was found: this is the part that needs none"
    exec "$python" "$script" --device cpu "$@"
fi
"$python" "$script" "$@"

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ ! -x "$sanitizer" ]; then
    echo "compute-sanitizer was not found: no memcheck"
    exit 0
fi
echo "the round trips under memcheck"
# Without torch's cache each tensor is an allocation of its own, whose ends memcheck knows. Errors that a call
# returns are the caller's matter, and torch asks for much that a driver may not have: they are left out.
PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool memcheck --target-processes all --report-api-errors no \
    --error-exitcode 3 "$python" "$script" --device cuda --quick --round-trips-only
