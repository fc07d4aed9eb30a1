#!/usr/bin/env bash
# Rank 0 writes who it is into a file; the other ranks read the file to find it.
# The race is on purpose: a rank that starts first reads what the last run left.
set -euo pipefail
: "${JOB_COMPLETION_INDEX:?}" "${FOLDER:?}" "${FILE_NAME:?}" "${RUN_ID:?}" "${POD_NAME:?}"
file="$FOLDER/$FILE_NAME"

if [ "${CLEAN_UP:-false}" = true ]; then
  rm -f "$FOLDER"/head-address*
  echo "no address is left in $FOLDER"
  exit 0
fi

if [ "$JOB_COMPLETION_INDEX" = 0 ]; then
  sleep 2 # its image was pulled a little later than the other's
  rm -f "$file"
  echo "$POD_NAME" >"$file"
  echo "rank 0 is $POD_NAME"
else
  for _ in $(seq 2400); do
    [ -s "$file" ] && break
    sleep 0.1 # 240 s in all
  done
  echo "rank $JOB_COMPLETION_INDEX dials $(cat "$file")"
fi
