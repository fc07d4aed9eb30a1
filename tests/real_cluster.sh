#!/bin/sh
# The workshop on a real Kubernetes, from a reachable kubeconfig on: the protocol suite, what only a
# real server can tell, and the four notebooks with a learner's rights, one after the other.
#
#   WORKSHOP_TEST_KUBECONFIG=~/.kube/config sh tests/real_cluster.sh [NOTEBOOK ...]
#
# The kubeconfig's user may make namespaces. The cluster has KubeRay 1.7, a storage class `standard`
# and the image of manifests/images/kind (WORKSHOP_TEST_IMAGE, in which the tests' pods run, too).
# Namespaces and what is in them are deleted at the end; nothing else is touched.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
workshop="$python -m workshop_lib.tools.cli"
: "${WORKSHOP_TEST_KUBECONFIG:?names the kubeconfig of a real cluster}"
export WORKSHOP_TEST_KUBECONFIG
export WORKSHOP_TEST_IMAGE="${WORKSHOP_TEST_IMAGE:-ray-vllm-workshop-cpu:2.60.0-0.32.0}"
folder=$(mktemp -d)
room="real-$(basename "$folder" | tr -dc 'a-z0-9')"

administrator() { KUBECONFIG=$WORKSHOP_TEST_KUBECONFIG $workshop room "$@" --profile kind --room "$room"; }

end() {
  administrator clean --data --yes || true
  rm -rf "$folder"
}
trap end EXIT

if [ -z "${WORKSHOP_ONLY_NOTEBOOKS:-}" ]; then
  $python -m pytest tests/protocol tests/kubernetes/test_real_cluster.py tests/production/test_labs.py -k real
fi
printf 'name\n%s\n' "$room" >"$folder/learners.csv"
administrator apply "$folder/learners.csv" --yes
administrator kubeconfig "$folder/learners.csv" --folder "$folder"
KUBECONFIG="$folder/$room.kubeconfig" $workshop run --profile kind "$@"
