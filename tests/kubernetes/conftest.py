"""The cluster of these tests is the emulator's."""

from emulated import cluster, config, emulator, quick  # noqa: F401
