#!/bin/sh
# A vLLM server with kvtier below it:  examples/serve.sh MODEL [TIER-CONFIG] [further arguments of vllm serve]
# The tier config is examples/tiers.json by default; copy it and put your own sizes and paths in.
set -eu

model=${1:?"usage: $0 MODEL [TIER-CONFIG] [arguments of vllm serve]"}
shift
here=$(cd "$(dirname "$0")" && pwd)
tiers=$here/tiers.json
case ${1:-} in
    "" | -*) ;;
    *) tiers=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift ;;
esac

kvtier check "$tiers"

exec vllm serve "$model" "$@" --kv-transfer-config '{
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "spec_name": "CompositeOffloadingSpec",
        "spec_module_path": "kvtier.factory.vllm",
        "kvtier": "'"$tiers"'"
    }
}'
