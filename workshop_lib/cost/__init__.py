"""What the workshop costs on EC2, before it is applied: machines, a component, a room."""

from __future__ import annotations

from workshop_lib.cost.budget import PLAN, Budget, Phase, budget
from workshop_lib.cost.catalogue import Instance, catalogue, catalogue_table, instance, service
from workshop_lib.cost.estimate import Cost, announce, component_cost, cost_of

__all__ = [
    "PLAN",
    "Budget",
    "Cost",
    "Instance",
    "Phase",
    "announce",
    "budget",
    "catalogue",
    "catalogue_table",
    "component_cost",
    "cost_of",
    "instance",
    "service",
]
