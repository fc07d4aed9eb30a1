"""Break-and-fix labs: something real is broken on the learner's cluster, and only symptoms show.

`start` breaks a component by one wrong value, or by ending a process. The learner looks
(`symptoms`, `cluster.get(...).events()`, `logs()`, `cluster.diagnose(...)`), repairs with
`cluster.apply(...)`, and asks `check`; `hint` and `solution` help; `end` cleans up. What each lab
is stands in `data/labs.yaml`.
"""

from __future__ import annotations

from workshop_lib.production.labs.lab import Lab, Symptoms, get, plan, start, table

__all__ = ["Lab", "Symptoms", "get", "plan", "start", "table"]
