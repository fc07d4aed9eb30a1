#!/usr/bin/env bash
# One node of the training Job: `train-node.sh COMMAND [ARGUMENT...]`.
#
# Every rank is a node of the Ray cluster, as ray-node.sh starts it. Rank 0 also runs the
# command, the trainer, as a Ray job; the trainer's exit code becomes the Job's.
set -euo pipefail
: "${JOB_COMPLETION_INDEX:?is set in the pods of an Indexed Job}" "${SCRIPTS_DIR:?}"
: "${FINISH_FILE:?}" "${RAY_TEMP_DIR:?}" "${DASHBOARD_ADDRESS:?}"

if [ "$JOB_COMPLETION_INDEX" != 0 ]; then
  exec bash "$SCRIPTS_DIR/ray-node.sh"
fi

read -ra overrides <<<"${OVERRIDES:-}"
export LAST_LINE_FILE="$RAY_TEMP_DIR/last-line"

bash "$SCRIPTS_DIR/ray-node.sh" &
node=$!
{
  # Ray gives its head 30 s to start: until it has, nothing else here takes its processor.
  until timeout 5 bash -c "exec 3<>/dev/tcp/${DASHBOARD_ADDRESS/:/\/}" 2>/dev/null; do
    sleep 0.5
  done
  exec python "$SCRIPTS_DIR/submit.py" "$@" "${overrides[@]}"
} &
trainer=$!
trap 'kill -TERM "$trainer" "$node" 2>/dev/null || true; wait || true; exit 143' TERM

code=0
wait -n "$node" "$trainer" || code=$?
if kill -0 "$trainer" 2>/dev/null; then
  kill -TERM "$trainer"
  echo "Ray ended before the trainer did, with exit code $code; what it says is above"
  exit 1
fi
echo "$code" >"$FINISH_FILE" # ray-node.sh stops Ray when it finds this
wait "$node" || true
if [ "$code" != 0 ]; then
  # Last, so that whoever asks why the Job failed is told.
  echo "the trainer failed with exit code $code: $(cat "$LAST_LINE_FILE" 2>/dev/null || true)"
fi
exit "$code"
