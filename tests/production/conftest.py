"""Both worlds: `cluster` is the emulator's; `new_cluster`, `busy_cluster` play on this machine."""

from emulated import cluster, config, emulator, quick  # noqa: F401
from local.conftest import _shared, busy_cluster, new_cluster  # noqa: F401
