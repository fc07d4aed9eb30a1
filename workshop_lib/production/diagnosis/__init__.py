"""What is wrong in a cluster: rules over a snapshot give cause, evidence and fix.

A snapshot is plain data (`cluster.snapshot()`, or a file): the objects of one namespace
as the API server returns them, the nodes, and the ends of logs. `diagnose` is a pure
function of it, so a saved snapshot can be looked at anywhere.

It follows the decision tree of notebook 04: do the pods run? Do the Ray nodes find each
other? Did the model load? Is it reached? The first step that fails is the cause.
"""

from workshop_lib.production.diagnosis.diagnose import diagnose, load_snapshot, save_snapshot
from workshop_lib.production.diagnosis.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose", "load_snapshot", "save_snapshot"]
