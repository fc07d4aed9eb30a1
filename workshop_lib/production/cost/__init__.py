"""What the workshop costs on EC2, before it is applied: a component, a room."""

from __future__ import annotations

from workshop_lib.production.cost.budget import PLAN, Budget, Phase, budget

__all__ = ["PLAN", "Budget", "Phase", "budget"]
