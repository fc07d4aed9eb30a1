"""Teaching a room: a namespace, a quota and a price for each learner, from one list.

`workshop room plan|apply|kubeconfig|table|clean` is the instructor's side; the last cell of each
notebook calls `share_checks`.
"""

from __future__ import annotations

from workshop_lib.production.room.board import share_checks

__all__ = ["share_checks"]
