"""The platform's side of serving: which sizes fit, a kro graph and a Backstage form for them.

Everything here is written from what is there already: the overlay `eks/ray-service-s3` and its
parameters, the catalogue of instance types, the memory model. `python -m
workshop_lib.production.platform`
writes the files anew; a test compares.
"""

from workshop_lib.production.platform.backstage import instance, template
from workshop_lib.production.platform.kro import graph
from workshop_lib.production.platform.sizes import Size, sizes

__all__ = ["Size", "graph", "instance", "sizes", "template"]
