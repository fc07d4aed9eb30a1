"""Ask Ray for GPUs in several ways and report where it put them, as one line of JSON."""

import json
import time

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

ray.init(log_to_driver=False)
alive = [node for node in ray.nodes() if node["Alive"]]
ip_of = {node["NodeID"]: node["NodeManagerAddress"] for node in alive}
gpus = {node["NodeManagerAddress"]: int(node["Resources"].get("GPU", 0)) for node in alive}
per_node = max(gpus.values())


def this_node():
    """The address of the node that this code runs on."""
    return ip_of[ray.get_runtime_context().get_node_id()]


@ray.remote(num_cpus=0, num_gpus=1)
def task():
    """Holds one GPU for a moment."""
    time.sleep(1)
    return this_node()


@ray.remote(num_cpus=0)
class Holder:
    """Holds its GPUs until it is dropped, as an engine or a trainer does."""

    def where(self):
        """Its node."""
        return this_node()


def tasks(count):
    """Where tasks of one GPU each run."""
    return ray.get([task.remote() for _ in range(count)])


def actor(count):
    """Where an actor with so many GPUs runs; nowhere if none can hold it."""
    holder = Holder.options(num_gpus=count).remote()
    ready, _ = ray.wait([place := holder.where.remote()], timeout=5)
    return [ray.get(place)] * count if ready else []


def group(strategy, bundles):
    """Where a placement group's bundles of one GPU each land; nowhere while it is pending."""
    pg = placement_group([{"GPU": 1}] * bundles, strategy=strategy)
    created = pg.wait(timeout_seconds=5)
    table = placement_group_table(pg)
    nodes = [ip_of[node] for node in table["bundles_to_node_id"].values()] if created else []
    remove_placement_group(pg)
    return nodes


def ask(text, place, *arguments):
    """One request, made when the GPUs of the one before are free again."""
    while ray.available_resources().get("GPU", 0) < sum(gpus.values()):
        time.sleep(0.1)
    nodes = place(*arguments)
    return {"request": text, "nodes": nodes, "created": bool(nodes)}


requests = [
    ask(f"{sum(gpus.values())} tasks, 1 GPU each", tasks, sum(gpus.values())),
    ask(f"1 actor, {per_node} GPUs", actor, per_node),
    ask("PACK: 2 x 1 GPU", group, "PACK", 2),
    ask("SPREAD: 2 x 1 GPU", group, "SPREAD", 2),
    ask(f"STRICT_PACK: {per_node} x 1 GPU", group, "STRICT_PACK", per_node),
    ask(f"STRICT_PACK: {per_node + 1} x 1 GPU", group, "STRICT_PACK", per_node + 1),
    ask(f"1 actor, {per_node + 1} GPUs", actor, per_node + 1),
]
print(json.dumps({"gpus": gpus, "requests": requests}))
