"""Checks of lesson 04: GPUs, EFA, the production checklist, and preflight."""

from __future__ import annotations

from workshop_lib.production.checks.efa import (
    check_counters,
    check_efa,
    check_nccl_log,
    check_pingpong,
    collect_efa,
)
from workshop_lib.production.checks.efa_network import (
    check_network,
    ec2_client,
    fix_security_group,
    practice_ec2,
)
from workshop_lib.production.checks.gpu import check_gpus, gpu_table, query_gpus
from workshop_lib.production.checks.preflight import preflight
from workshop_lib.production.checks.production import check_production, production_table
from workshop_lib.production.checks.xid import check_xids, xid_table

__all__ = [
    "check_counters",
    "check_efa",
    "check_gpus",
    "check_nccl_log",
    "check_network",
    "check_pingpong",
    "check_production",
    "check_xids",
    "collect_efa",
    "ec2_client",
    "fix_security_group",
    "gpu_table",
    "practice_ec2",
    "preflight",
    "production_table",
    "query_gpus",
    "xid_table",
]
