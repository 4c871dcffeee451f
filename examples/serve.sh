#!/bin/sh
# Start a vLLM server with kvtier:  examples/serve.sh MODEL [TIER-DOCUMENT] [further arguments of vllm serve]
# The tier document is examples/tiers.json by default. Copy it and put your own sizes and paths in.
# With --shutdown-timeout, vLLM lets kvtier write waiting chunks to the drive when it gets SIGTERM (docs/vllm.md).
set -eu

model=${1:?"usage: $0 MODEL [TIER-DOCUMENT] [arguments of vllm serve]"}
shift
here=$(cd "$(dirname "$0")" && pwd)
tiers=$here/tiers.json
case ${1:-} in
    "" | -*) ;;
    *) tiers=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift ;;
esac

kvtier check "$tiers"

exec vllm serve "$model" --shutdown-timeout 40 "$@" --kv-transfer-config '{
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "spec_name": "CompositeOffloadingSpec",
        "spec_module_path": "kvtier.factory.vllm",
        "kvtier": "'"$tiers"'"
    }
}'
