#!/usr/bin/env bash
# One node of a Ray cluster in an Indexed Job: rank 0 is the head, the others are workers.
#
# Every address and path comes from the environment, so the same script runs in a pod
# and as a process of a laptop. Ports are taken from the addresses they belong to.
set -euo pipefail

: "${JOB_COMPLETION_INDEX:?is set in the pods of an Indexed Job}"
: "${HEAD_ADDRESS:?rank 0, as host:port}" "${POD_IP:?}" "${RAY_TEMP_DIR:?}"

say() { printf '%s rank %s: %s\n' "$(date -u +%H:%M:%S)" "$JOB_COMPLETION_INDEX" "$*"; }

node=(
  --block --disable-usage-stats --log-color=false
  --node-ip-address="$POD_IP"
  --num-cpus="$NUM_CPUS" --num-gpus="$NUM_GPUS"
  --memory="$((MEMORY_BYTES * 7 / 10))" --object-store-memory="$OBJECT_STORE_BYTES"
  --temp-dir="$RAY_TEMP_DIR"
  --metrics-export-port="$METRICS_PORT" --dashboard-agent-listen-port="$AGENT_PORT"
  --min-worker-port="${WORKER_PORTS%-*}" --max-worker-port="${WORKER_PORTS#*-}"
)

# Ray gives a node's agents 15 s to start, and the node dies on a machine that is busier: one
# that dies while it starts is started again, three times; one that ends later has ended.
tries=0
start() {
  tries=$((tries + 1)) began=$SECONDS
  ray start "$@" "${node[@]}" &
  ray=$!
}
died_early() { [ "$tries" -lt 4 ] && [ $((SECONDS - began)) -lt "${START_LIMIT_S:-150}" ]; }
trap 'kill -TERM ${ray:-} 2>/dev/null || true; wait || true; exit 143' TERM

if [ "$JOB_COMPLETION_INDEX" != 0 ]; then
  host=${HEAD_ADDRESS%:*} port=${HEAD_ADDRESS##*:}
  say "waiting for the head at $HEAD_ADDRESS"
  began=$SECONDS
  until timeout 5 bash -c "exec 3<>/dev/tcp/$host/$port" 2>/dev/null; do
    if [ $((SECONDS - began)) -gt 600 ]; then
      say "no head at $HEAD_ADDRESS after 600 s: does rank 0 run, is port $port open?"
      exit 1
    fi
    sleep 0.5
  done
  say "joining the head, which answered after $((SECONDS - began)) s"
  while :; do
    code=0
    start --address="$HEAD_ADDRESS"
    wait "$ray" || code=$?
    died_early || exit "$code"
    say "the node did not come up; trying again"
    sleep 2
  done
fi

head=(
  --head --port="${HEAD_ADDRESS##*:}"
  --dashboard-host="$LISTEN_HOST" --dashboard-port="${DASHBOARD_ADDRESS##*:}"
  --ray-client-server-port="${CLIENT_ADDRESS##*:}"
)
say "starting the head"
start "${head[@]}"

# The Job's result is rank 0's: it ends when somebody writes an exit code to FINISH_FILE,
# or when Ray ends by itself, which is a failure.
while :; do
  if [ -s "$FINISH_FILE" ]; then
    code=$(cat "$FINISH_FILE")
    say "finished with exit code $code; stopping Ray"
    kill -TERM "$ray" 2>/dev/null || true
    wait "$ray" || true
    exit "$code"
  fi
  if ! kill -0 "$ray" 2>/dev/null; then
    died_early || break
    say "the head did not come up; trying again"
    sleep 2
    start "${head[@]}"
  fi
  sleep 1
done
say "Ray ended by itself"
exit 1
