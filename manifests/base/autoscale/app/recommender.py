"""A small service for Ray Serve: a fixed amount of work a request, no GPU, no model to load.

It answers with the articles that fit a reader best. Per request it scores every article with
numpy (a few milliseconds of one CPU) and then waits `wait_ms`: the wait stands for the part of
a real answer in which the CPU has nothing to do, because a GPU computes or a database reads.
One replica works on one request at a time, as an engine with a batch of one would. So a replica
answers at most 1000 / service_ms requests a second, and only more replicas answer more: also on
a machine with two cores, since waiting costs no CPU.
"""

import asyncio
import time

import numpy as np
from ray import serve
from starlette.requests import Request

ARTICLES = 20_000
FEATURES = 128
BEST = 5


@serve.deployment
class Recommender:
    """Scores articles for a reader."""

    def __init__(self):
        self._articles = np.random.default_rng(0).standard_normal(
            (ARTICLES, FEATURES), dtype=np.float32
        )
        self._turn = asyncio.Lock()
        self._wait_s = 0.0
        self._name = serve.get_replica_context().replica_id.unique_id

    def reconfigure(self, user_config):
        """Serve calls this with `user_config`, at the start and whenever it changes."""
        self._wait_s = user_config["wait_ms"] / 1000

    async def __call__(self, request: Request):
        """Score the articles for the reader that the request names."""
        reader = int((await request.json())["reader"])
        async with self._turn:
            began = time.perf_counter()
            await asyncio.sleep(self._wait_s)
            taste = np.random.default_rng(reader).standard_normal(FEATURES, dtype=np.float32)
            scores = self._articles @ taste
            best = np.argpartition(scores, -BEST)[-BEST:]
            best = best[np.argsort(-scores[best])]
            service_ms = 1000 * (time.perf_counter() - began)
        return {"articles": best.tolist(), "replica": self._name, "service_ms": service_ms}


app = Recommender.bind()
