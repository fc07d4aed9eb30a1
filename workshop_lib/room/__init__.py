"""Teaching a room: a namespace, a quota and a price for each learner, from one list.

```
python -m workshop_lib.room plan learners.csv          what would be made, and what it costs
python -m workshop_lib.room apply learners.csv --yes   make it
python -m workshop_lib.room kubeconfig learners.csv --folder kubeconfigs
python -m workshop_lib.room table                      how far everyone is
python -m workshop_lib.room clean --yes                remove what learners made
```
"""

from workshop_lib.room.board import share_checks
from workshop_lib.room.room import Room, room_objects, room_price
from workshop_lib.room.roster import Learner, read_roster

__all__ = ["Learner", "Room", "read_roster", "room_objects", "room_price", "share_checks"]
