"""The local cluster: the workshop's manifests played as processes of this machine."""
