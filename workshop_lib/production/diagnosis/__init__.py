"""What is wrong in a cluster: cause, evidence and fix, from a snapshot.

A snapshot is plain data (`cluster.snapshot()`, or a file): the objects of one namespace as the API
server returns them, the nodes where they may be read, and the ends of logs. `diagnose` is a pure
function of it, so a saved snapshot can be looked at anywhere.

It walks one tree (node, scheduling, volumes, image, start, health, dependants); wordings lie in
`patterns.yaml`. Four rules hold everywhere. What failed outranks what waits for it. Where no
wording is known, the first error of the first thing that failed is the evidence. Facts that the
snapshot has are joined. What is not ready without a reason is "not known yet", never healthy.
"""

from workshop_lib.production.diagnosis.diagnose import diagnose, load_snapshot, save_snapshot
from workshop_lib.production.diagnosis.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose", "load_snapshot", "save_snapshot"]
