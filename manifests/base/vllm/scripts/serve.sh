#!/usr/bin/env bash
# vLLM's OpenAI server for a model on the shared volume; more of its options as arguments.
set -euo pipefail
: "${MODEL:?a model name}" "${MODELS_DIR:?}" "${LISTEN_HOST:?}" "${LISTEN_PORT:?}" "${CACHE_DIR:?}"

folder="$MODELS_DIR/${MODEL//\//--}"
if [ ! -f "$folder/config.json" ]; then
  echo "model $MODEL is not at $folder; put it there with cluster.apply(\"model\")"
  exit 1
fi
export VLLM_CACHE_ROOT="$CACHE_DIR"
python=$(command -v python3 || command -v python)
# The module, not the `vllm` command: that one is missing in the CPU build.
exec "$python" -m vllm.entrypoints.openai.api_server \
  --model "$folder" --served-model-name "$MODEL" \
  --host "$LISTEN_HOST" --port "$LISTEN_PORT" "$@"
