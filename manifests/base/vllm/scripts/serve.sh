#!/usr/bin/env bash
# vLLM's OpenAI server for a model on a shared volume; more of its options as arguments.
#
# MODEL is a name, and then the component `model` has prepared it, or a folder of the volume
# at SHARED_DIR, such as a checkpoint, which is then served under its path in that volume.
set -euo pipefail
: "${MODEL:?a model name}" "${MODELS_DIR:?}" "${SHARED_DIR:?}"
: "${LISTEN_HOST:?}" "${LISTEN_PORT:?}" "${CACHE_DIR:?}"

name=$MODEL
folder="$MODELS_DIR/${MODEL//\//--}"
advice='put it there with cluster.apply("model")'
if [[ $MODEL == "$SHARED_DIR"/* ]]; then
  name=${MODEL#"$SHARED_DIR"/}
  folder=$MODEL
  advice='a training leaves a checkpoint there when it ends'
fi
if [ ! -f "$folder/config.json" ]; then
  echo "model $name is not at $folder; $advice"
  exit 1
fi
export VLLM_CACHE_ROOT="$CACHE_DIR"
python=$(command -v python3 || command -v python)
# The module, not the `vllm` command: that one is missing in the CPU build.
exec "$python" -m vllm.entrypoints.openai.api_server \
  --model "$folder" --served-model-name "$name" \
  --host "$LISTEN_HOST" --port "$LISTEN_PORT" "$@"
