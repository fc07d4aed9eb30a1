"""Teaching a room: a namespace, a quota and a price for each learner, from one list.

```
python -m workshop_lib.production.room plan learners.csv      what would be made, and what it costs
python -m workshop_lib.production.room apply learners.csv --yes   make it
python -m workshop_lib.production.room kubeconfig learners.csv --folder kubeconfigs
python -m workshop_lib.production.room table                      how far everyone is
python -m workshop_lib.production.room clean --yes                remove what learners made
```
"""

from workshop_lib.production.room.board import share_checks
from workshop_lib.production.room.room import Room, room_objects, room_price
from workshop_lib.production.room.roster import Learner, read_roster

__all__ = ["Learner", "Room", "read_roster", "room_objects", "room_price", "share_checks"]
