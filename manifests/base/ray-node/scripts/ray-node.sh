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
  # Ports that Ray's agents would choose by themselves: a node waits 15 s for that choice,
  # and dies on a machine that is busier.
  --dashboard-agent-grpc-port="$AGENT_GRPC_PORT" --runtime-env-agent-port="$RUNTIME_ENV_PORT"
  --min-worker-port="${WORKER_PORTS%-*}" --max-worker-port="${WORKER_PORTS#*-}"
)

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
  exec ray start --address="$HEAD_ADDRESS" "${node[@]}"
fi

say "starting the head"
ray start --head --port="${HEAD_ADDRESS##*:}" \
  --dashboard-host="$LISTEN_HOST" --dashboard-port="${DASHBOARD_ADDRESS##*:}" \
  --ray-client-server-port="${CLIENT_ADDRESS##*:}" "${node[@]}" &
head=$!
trap 'kill -TERM "$head"; wait "$head" || true; exit 143' TERM

# The Job's result is rank 0's: it ends when somebody writes an exit code to FINISH_FILE,
# or when Ray ends by itself, which is a failure.
while kill -0 "$head" 2>/dev/null; do
  if [ -s "$FINISH_FILE" ]; then
    code=$(cat "$FINISH_FILE")
    say "finished with exit code $code; stopping Ray"
    kill -TERM "$head"
    wait "$head" || true
    exit "$code"
  fi
  sleep 1
done
say "Ray ended by itself"
exit 1
