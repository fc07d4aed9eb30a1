"""What containers wrote: of all pods of a workload, followed over drops and restarts.

The end of a stream says nothing about the container: a proxy, the kubelet or a token's
end may have cut it. Whether there is more to read is asked of the pod, and a container
that has ended is read once more, so that its last lines are not lost either.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import LogLine
from workshop_lib.errors import NotFoundError, WorkshopError
from workshop_lib.kubernetes.answers import problem, retry_after_s
from workshop_lib.kubernetes.api import Api, Lost, Pauses, chunks, read
from workshop_lib.kubernetes.observe import INDEX, get_workload, own_pods, pod_selector
from workshop_lib.kubernetes.resources import resource_of_kind
from workshop_lib.kubernetes.resuming import Position
from workshop_lib.kubernetes.watch import shut
from workshop_lib.workload import is_true

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["read_logs"]

Json = Mapping[str, Any]

SILENT_S = 300.0
"""A stream that is silent for so long is opened anew: it may be dead."""

LOOK_EVERY_S = 1.0
"""How often a followed workload is asked for new pods, and whether it is over."""

MOST_BARREN = 200
"""So often in a row a stream may break before it comes to new lines."""

BATCHES = 16
"""So many batches wait for the reader; then the streams are read no further."""


class _Breaks:
    """How a stream's breaks are answered.

    One that brought new lines is read on at once. One that brought only lines that were
    known already breaks too early, and is asked for again many times. A server that says
    nothing is given as many tries as for any request.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self.brought = False
        self._pauses = Pauses(tries)
        self._barren = 0

    def next_s(self, *, heard: bool) -> float | None:
        """The pause before the next try, or None when it is no use to go on."""
        if self.brought:
            self.brought = False
            self._pauses, self._barren = Pauses(self._tries), 0
            return 0.0
        if not heard:
            return self._pauses.next_s()
        self._barren += 1
        return 0.02 if self._barren < MOST_BARREN else None


class ContainerLog:
    """The log of one container of one pod, as batches of lines.

    Args:
        api: The server.
        namespace: Where.
        pod: The pod.
        container: The container's name.
        follow: Go on until the container will not write any more.
        previous: The run before the last restart.
        tail: Only so many last lines of what is there.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        pod: Json,
        container: str,
        *,
        follow: bool = False,
        previous: bool = False,
        tail: int | None = None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = pod["metadata"]["name"]
        self._uid = pod["metadata"]["uid"]
        self._container = container
        self._follow = follow
        self._previous = previous
        self._tail = tail
        self._position = Position()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._response: BaseHTTPResponse | None = None
        self._heard = False
        index = (pod["metadata"].get("annotations") or {}).get(INDEX)
        self._who = (self._name, None if index is None else int(index), container)

    def stop(self) -> None:
        """Make the reading end, from another thread."""
        self._stop.set()
        with self._lock:
            if self._response is not None:
                shut(self._response)

    def batches(self) -> Generator[list[LogLine], None, None]:
        """The lines, each once, in batches as they come.

        Raises:
            WorkshopError: The server refuses them, or stays away.
        """
        if not self._follow:
            yield from self._whole(previous=self._previous)
            return
        breaks, run = _Breaks(self._api.tries), None
        while not self._stop.is_set():
            pod = self._api.get(resource_of_kind("Pod"), self._namespace, self._name)
            if pod is None or pod["metadata"]["uid"] != self._uid:
                return
            status = container_statuses(pod).get(self._container, {})
            if run is not None and status.get("restartCount", 0) > run:
                yield from self._whole(previous=True)  # what it wrote last before its restart
            run = status.get("restartCount", 0)
            if "terminated" in (status.get("state") or {}):
                yield from self._whole()
                if _has_ended(pod, self._container):
                    return
                self._stop.wait(LOOK_EVERY_S)
                continue
            try:
                for lines in self._stream(follow=True):
                    breaks.brought = True
                    yield lines
                self._stop.wait(0.0 if breaks.brought else LOOK_EVERY_S)
                breaks.brought = False
            except Lost as error:
                self._stop.wait(self._pause_s(breaks, error))

    def _whole(self, *, previous: bool = False) -> Iterator[list[LogLine]]:
        """What is there of a run, to its end."""
        breaks = _Breaks(self._api.tries)
        while not self._stop.is_set():
            try:
                for lines in self._stream(follow=False, previous=previous):
                    breaks.brought = True
                    yield lines
                return
            except Lost as error:
                self._stop.wait(self._pause_s(breaks, error))

    def _pause_s(self, breaks: _Breaks, error: Lost) -> float:
        """The pause after a stream broke.

        Raises:
            Lost: It is no use to go on.
        """
        pause_s = breaks.next_s(heard=self._heard)
        if pause_s is None:
            raise Lost(f"the log of {self._name}: {error}; read it again with logs()") from None
        return pause_s

    # -- one stream -----------------------------------------------------------------------------

    def _stream(self, *, follow: bool, previous: bool = False) -> Iterator[list[LogLine]]:
        """The new lines of one stream.

        Raises:
            Lost: It broke.
        """
        self._heard = False
        params = {"container": self._container, "timestamps": "true"}
        params |= {"follow": "true"} if follow else {}
        params |= {"previous": "true"} if previous else {}
        if (since := self._position.resume()) is not None:
            params["sinceTime"] = since
        elif self._tail is not None:
            params["tailLines"] = str(self._tail)
        path = resource_of_kind("Pod").path(self._namespace, self._name) + "/log"
        response = self._api.open("GET", path, params=params, read_timeout_s=SILENT_S)
        with self._lock:
            if self._stop.is_set():
                response.close()
                return
            self._response = response
        try:
            if response.status != 200:
                self._refused(response)
                return
            yield from self._lines(response, whole=not follow)
        finally:
            with self._lock:
                self._response = None
            response.close()

    def _lines(self, response: BaseHTTPResponse, *, whole: bool) -> Iterator[list[LogLine]]:
        """Batches of a stream's new lines; `whole`: half a line at its clean end is a line."""
        pod, rank, container = self._who
        rest = b""
        for chunk in chunks(response):
            self._heard = True
            data = rest + chunk
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end and (texts := self._position.new(_split(data[:end]))):
                yield [LogLine(pod, rank, container, text) for text in texts]
        if whole and rest and (texts := self._position.new(_split(rest))):
            yield [LogLine(pod, rank, container, text) for text in texts]

    def _refused(self, response: BaseHTTPResponse) -> None:
        """Nothing to read is no error; trouble that passes is a lost stream."""
        answer = read(response)
        if answer.status in (400, 404):  # it has not begun, or has no such run, or is gone
            return
        if answer.is_worth_retrying:
            asked_s = retry_after_s(answer.headers)
            self._stop.wait(min(asked_s or 0.0, 60.0))
            raise Lost(f"the server answered {answer.status}: {answer.message}")
        raise problem(answer, f"the log of {self._name}")


def _has_ended(pod: Json, container: str) -> bool:
    """Whether a container that has terminated will not be started again."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed") or pod["metadata"].get("deletionTimestamp"):
        return True
    policy = pod["spec"].get("restartPolicy", "Always")
    ended = container_statuses(pod)[container]["state"]["terminated"]
    init = any(each["name"] == container for each in status.get("initContainerStatuses") or [])
    return policy == "Never" or (ended.get("exitCode") == 0 and (init or policy == "OnFailure"))


def _split(data: bytes) -> list[str]:
    lines = data.decode(errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines] if b"\r" in data else lines


def container_statuses(pod: Json) -> dict[str, Any]:
    """A pod's containers' statuses by name, in the order in which they run."""
    status = pod.get("status") or {}
    both = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    return {each["name"]: each for each in both}


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
                yield from batch


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
        self._queue: queue.Queue[list[LogLine] | WorkshopError] = queue.Queue(BATCHES)
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
                yield from item
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

    def _put(self, item: list[LogLine] | WorkshopError) -> bool:
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
