"""Lesson 01: a cluster, in both worlds, and what runs on it."""

from __future__ import annotations

from workshop_lib.cluster.base import Cluster, dashboard, head_ports
from workshop_lib.cluster.catalogue import instance
from workshop_lib.cluster.checks import check_ray_cluster, expected_gpus
from workshop_lib.cluster.cleaning import check_clean
from workshop_lib.cluster.connect import connect
from workshop_lib.cluster.prices import component_cost
from workshop_lib.cluster.ray import RayDashboard
from workshop_lib.cluster.settings import explain_settings

__all__ = [
    "Cluster",
    "RayDashboard",
    "check_clean",
    "check_ray_cluster",
    "component_cost",
    "connect",
    "dashboard",
    "expected_gpus",
    "explain_settings",
    "head_ports",
    "instance",
]
