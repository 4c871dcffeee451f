#!/bin/sh
# Everything that is to be tried on a GPU, in two calls of at most six minutes each, from the checkout:
#
#     tools/gpu_day.sh correctness FOLDER
#     tools/gpu_day.sh figures FOLDER
#
# Each part writes its JSON into FOLDER when it is done, and `parts.txt` says how each has ended; so a call that
# is cut off keeps what it has. It ends by itself. Nothing is installed: torch and numpy are there, and what else
# is needed comes from wheels in WHEELS (build/wheels), for this Python. Settings, by environment:
#
#     PYTHON=python3  DEVICE=cuda  WHEELS=build/wheels  LIMIT_S=350  QUICK= (1: small sizes, for a machine without a GPU)
set -u

call=$1
folder=$2
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
quick=${QUICK:+--quick}
ends=$(($(date +%s) + ${LIMIT_S:-350}))
unpacked=$(mktemp -d)
child=
stopped() {
    [ -z "$child" ] || kill "$child" # `timeout`, which hands it on; then it waits for no more than a kill takes
    [ -z "$child" ] || wait "$child"
    exit 130
}
trap 'rm -rf "$unpacked"' EXIT
trap stopped INT TERM HUP
mkdir -p "$folder"

for wheel in "${WHEELS:-$root/build/wheels}"/*.whl; do
    [ -e "$wheel" ] && "$python" -m zipfile -e "$wheel" "$unpacked"
done
export PYTHONPATH="$unpacked${PYTHONPATH:+:$PYTHONPATH}"

# part NAME COMMAND...: runs it in what is left of the time, with its output beside its JSON
failed=0
part() {
    name=$1
    shift
    left=$((ends - $(date +%s)))
    if [ "$left" -le 0 ]; then
        echo "$name: no time was left" | tee -a "$folder/parts.txt"
        failed=1
        return
    fi
    status=0
    # In the background: a shell that waits for a foreground command hears of no signal until that has ended.
    timeout --kill-after=5 "$left" "$@" >"$folder/$name.txt" 2>&1 &
    child=$!
    wait "$child" || status=$?
    child=
    [ "$status" -eq 0 ] || failed=1
    echo "$name: status $status, $left s were left before it" | tee -a "$folder/parts.txt"
}

copies=$root/benchmarks/device.py
others=$root/benchmarks/gpu_day.py

case $call in
correctness)
    part round-trips "$python" "$copies" --device "$device" $quick --round-trips-only --json "$folder/round-trips.json"
    part failing "$python" "$others" failing --device "$device" --json "$folder/failing.json"
    [ "$device" = cpu ] || part run-by-run "$python" "$copies" --device "$device" --quick --round-trips-only \
        --run-by-run --json "$folder/run-by-run.json" # plain memory knows no other way
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    if [ "$device" = cuda ] && [ -x "$sanitizer" ]; then
        # As in gpu_check.sh, which says why.
        part memcheck env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool memcheck --target-processes all \
            --report-api-errors no --error-exitcode 3 "$python" "$copies" --device cuda --quick --round-trips-only \
            --json "$folder/memcheck.json"
    fi
    ;;
figures)
    part copies "$python" "$copies" --device "$device" $quick --figures-only --json "$folder/copies.json"
    part drive "$python" "$others" drive --device "$device" ${QUICK:+--mib 64} --json "$folder/drive.json"
    part registration "$python" "$others" registration --device "$device" ${QUICK:+--mib 64} \
        --json "$folder/registration.json"
    ;;
*)
    echo "say correctness or figures, not $call" >&2
    exit 2
    ;;
esac
exit "$failed"
