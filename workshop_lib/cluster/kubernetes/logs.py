"""What the containers of a workload wrote: pod by pod, or followed, all at once."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from workshop_lib.cluster.kube import container_statuses, is_true, own_pods, pod_selector
from workshop_lib.cluster.kubernetes.api import Api
from workshop_lib.cluster.kubernetes.container_log import (
    LOOK_EVERY_S,
    ContainerLog,
    Gap,
    Lines,
    LogGapWarning,
)
from workshop_lib.cluster.kubernetes.observe import get_workload
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.records import LogLine
from workshop_lib.errors import NotFoundError, WorkshopError

__all__ = ["read_logs"]

Json = Mapping[str, Any]

BATCHES = 16
"""So many batches wait for the reader; then the streams are read no further."""


def _readable(pod: Json, *, previous: bool) -> list[str]:
    """The containers of a pod that have written something, or may have."""
    found = []
    for name, status in container_statuses(pod).items():
        restarted = bool(status.get("restartCount"))
        begun = "waiting" not in (status.get("state") or {"waiting": {}})
        if restarted or (begun and not previous):
            found.append(name)
    return found


def read_logs(
    api: Api,
    namespace: str,
    kind: str,
    name: str,
    *,
    follow: bool = False,
    previous: bool = False,
    tail: int | None = None,
    timeout_s: float | None = None,
) -> Iterator[LogLine]:
    """The lines that a workload's containers wrote, pod by pod; followed, as they come.

    Args:
        api: The server.
        namespace: Where.
        kind: The workload's kind, or `Pod` for a single one.
        name: Its name.
        follow: Go on until the workload is over, or deleted.
        previous: The lines of the run before each container's last restart.
        tail: Only so many last lines of each container.
        timeout_s: Stop following after so long.

    Where lines may be missing (the node had rotated or deleted them before they were read), a
    `LogGapWarning` says which. What a node loses while it sends one stream, nobody can see.

    Raises:
        NotFoundError: There is no such workload, or no previous run.
    """
    body, pods = _look(api, namespace, kind, name)
    if previous and not any(_readable(pod, previous=True) for pod in pods):
        raise NotFoundError(f"{kind}/{name}: nothing was restarted: there is no previous run")
    if follow and not previous:
        follower = _Follower(api, namespace, body, tail)
        try:
            yield from follower.lines(pods, timeout_s)
        finally:
            follower.stop()
        return
    for pod in pods:
        for container in _readable(pod, previous=previous):
            log = ContainerLog(api, namespace, pod, container, previous=previous, tail=tail)
            for batch in log.batches():
                yield from _told(batch)


def _told(batch: Lines | Gap) -> Lines:
    """A batch's lines; where some may be missing, that is said beside them."""
    if isinstance(batch, Gap):
        warnings.warn(batch.text, LogGapWarning, stacklevel=3)
        return iter(())
    return batch


def _look(
    api: Api, namespace: str, kind: str, name: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A workload and its pods."""
    body = get_workload(api, namespace, kind, name)
    if kind == "Pod":
        return body, [body]
    selector = pod_selector(body)
    if selector is None:
        return body, []
    pods, _ = api.list(resource_of_kind("Pod"), namespace, labels=selector)
    return body, own_pods(body, pods)


def _is_over(body: Json) -> bool:
    """Whether a workload will start no more pods."""
    if body["kind"] == "Pod":
        return (body.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return is_true(body, "Complete") or is_true(body, "Failed")


class _Follower:
    """Follows all containers of a workload, each in a thread, and gives their lines in turn."""

    def __init__(self, api: Api, namespace: str, body: Json, tail: int | None) -> None:
        self._api = api
        self._namespace = namespace
        self._kind, self._name = body["kind"], body["metadata"]["name"]
        self._body: Json | None = body
        self._tail = tail
        self._queue: queue.Queue[Lines | Gap | WorkshopError] = queue.Queue(BATCHES)
        self._threads: dict[tuple[str, str], threading.Thread] = {}
        self._logs: list[ContainerLog] = []
        self._stopped = threading.Event()

    def lines(self, pods: list[dict[str, Any]], timeout_s: float | None) -> Iterator[LogLine]:
        """The lines until the workload is over and all is read."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        looked_at = time.monotonic()
        self._start(pods)
        self._tail = None  # of what was there at first; new pods are read from their beginning
        while True:
            if deadline is not None and time.monotonic() > deadline:
                return
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                over = self._body is None or _is_over(self._body)
                if over and not any(thread.is_alive() for thread in self._threads.values()):
                    if self._queue.empty():
                        return
                    continue
            else:
                if isinstance(item, WorkshopError):
                    raise item
                yield from _told(item)
            if time.monotonic() - looked_at > LOOK_EVERY_S:
                self._look_again()
                looked_at = time.monotonic()

    def _look_again(self) -> None:
        if self._body is None:
            return
        try:
            body, pods = _look(self._api, self._namespace, self._kind, self._name)
        except NotFoundError:  # deleted while it was followed: read what is there to its end
            self._body = None
            return
        self._body = body
        self._start(pods)

    def _start(self, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            for container in _readable(pod, previous=False):
                key = (pod["metadata"]["uid"], container)
                if key not in self._threads:
                    log = ContainerLog(
                        self._api, self._namespace, pod, container, follow=True, tail=self._tail
                    )
                    self._logs.append(log)
                    name = f"log {pod['metadata']['name']} {container}"
                    thread = threading.Thread(
                        target=self._read, args=(log,), name=name, daemon=True
                    )
                    self._threads[key] = thread
                    thread.start()

    def _read(self, log: ContainerLog) -> None:
        try:
            with contextlib.closing(log.batches()) as batches:
                for batch in batches:
                    if not self._put(batch):
                        return
        except WorkshopError as error:
            self._put(error)

    def _put(self, item: Lines | Gap | WorkshopError) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    def stop(self) -> None:
        """End all threads and close their connections."""
        self._stopped.set()
        for log in self._logs:
            log.stop()
        for thread in self._threads.values():
            thread.join()
