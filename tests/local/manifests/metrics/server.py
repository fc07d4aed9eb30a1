"""The metrics of a vLLM at work: one request in ten waits long, and the cache is almost full."""

import os
import time

from prometheus_client import Gauge, Histogram, start_http_server

labels = {"model_name": "m", "engine": "0"}
running, waiting, cache = (
    Gauge(f"vllm:{name}", name, labels).labels(**labels)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
)
first = Histogram(
    "vllm:time_to_first_token_seconds", "TTFT", labels, buckets=[0.1, 0.5, 1.0, 2.5, 5.0]
).labels(**labels)
start_http_server(int(os.environ["PORT"]), os.environ["ADDRESS"])
running.set(4), waiting.set(2), cache.set(0.97)
while True:
    for number in range(10):
        first.observe(0.3 if number else 4.0)
    time.sleep(0.2)
