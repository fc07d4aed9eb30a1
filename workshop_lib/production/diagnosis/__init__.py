"""What is wrong in a cluster: cause, evidence and fix, from a snapshot.

A snapshot is plain data (`cluster.snapshot()`, or a file): the objects of one namespace as the API
server returns them, the nodes where they may be read, and the ends of logs. `diagnose` is a pure
function of it: one tree, with the wordings in `patterns.yaml`. What failed outranks what waits for
it. Where no wording is known, the first error of the first thing that failed is the evidence. What
is not ready without a reason is "not known yet", never healthy.
"""

from workshop_lib.production.diagnosis.cause import Diagnosis, Finding
from workshop_lib.production.diagnosis.diagnose import diagnose, load_snapshot, save_snapshot

__all__ = ["Diagnosis", "Finding", "diagnose", "load_snapshot", "save_snapshot"]
