"""Checks of the fourth lesson: what was looked at, what was seen, what to do."""

from __future__ import annotations

from workshop_lib.production.checks.efa import check_counters, check_nccl_log
from workshop_lib.production.checks.efa_network import (
    check_network,
    fix_security_group,
    practice_ec2,
)
from workshop_lib.production.checks.gpu import gpu_table
from workshop_lib.production.checks.preflight import preflight
from workshop_lib.production.checks.production import production_table
from workshop_lib.production.checks.xid import check_xids, xid_table

__all__ = [
    "check_counters",
    "check_nccl_log",
    "check_network",
    "check_xids",
    "fix_security_group",
    "gpu_table",
    "practice_ec2",
    "preflight",
    "production_table",
    "xid_table",
]
