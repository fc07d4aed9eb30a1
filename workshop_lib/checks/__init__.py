"""Checks: each says what was looked at, what was seen, and what to do if it fails."""

from __future__ import annotations

from workshop_lib.checks.checklist import Check, CheckList, Outcome
from workshop_lib.checks.lesson import check_ray_cluster, check_server, expected_gpus

__all__ = [
    "Check",
    "CheckList",
    "Outcome",
    "check_ray_cluster",
    "check_server",
    "expected_gpus",
]
