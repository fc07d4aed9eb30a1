"""Clients of a handler that only waits, under one limit of Ray Serve's router after the other.

    python router_queue.py CLIENTS SECONDS LIMIT...

Prints one line of JSON: for each limit the requests a second, and what would be ideal.
"""

import asyncio
import json
import sys
import time

from ray import serve

WAIT_S = 1.1


@serve.deployment(ray_actor_options={"num_cpus": 0}, graceful_shutdown_wait_loop_s=0.1)
class Waiter:
    """Needs 1.1 s for a request, however many there are."""

    async def __call__(self):
        """One request."""
        await asyncio.sleep(WAIT_S)


async def client(handle, answers):
    """Send a request, wait for the answer, send the next."""
    while True:
        await handle.remote()
        answers.append(time.monotonic())


async def load(handle, clients, seconds):
    """Let the clients work for some seconds; when they had answers. What still waits is dropped."""
    answers = []
    tasks = [asyncio.create_task(client(handle, answers)) for _ in range(clients)]
    failed, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:  # none ends by itself
        task.result()
    return answers


clients, seconds = int(sys.argv[1]), float(sys.argv[2])
limits = [int(each) for each in sys.argv[3:]]
apps = {f"waiter-{limit}": Waiter.options(max_ongoing_requests=limit).bind() for limit in limits}
targets = [serve.RunTarget(app, name=name, route_prefix=None) for name, app in apps.items()]
handles = serve.run_many(targets)  # they start together; one that has no clients needs nothing
rows = []
for limit, handle in zip(limits, handles, strict=True):
    began_s = time.monotonic()
    answers = asyncio.run(load(handle, clients, seconds))
    rows.append(
        {
            "max_ongoing_requests": limit,
            "ideal_per_s": round(min(limit, clients) / WAIT_S, 1),
            "requests_per_s": round(sum(at < began_s + seconds for at in answers) / seconds, 1),
        }
    )
for name in apps:
    serve.delete(name)
print(json.dumps(rows))
