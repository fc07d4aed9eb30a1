"""A cluster on this machine: the workshop's manifests, played as processes.

As `podman kube play` does, but with neither containers nor an API server. Read in
this order: `schema` (what is played), `cluster` (what a notebook calls), `supervisor`
(who owns the processes), `runner` (what runs one workload), `jobs`, `deployments` and
`ray_operator` (what a cluster's controllers do), `pod` (what a kubelet does).
"""
