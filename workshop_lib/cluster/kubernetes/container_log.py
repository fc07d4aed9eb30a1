"""The log of one container, read over drops and restarts.

The end of a stream says nothing about the container: a proxy, the kubelet or a token's
end may have cut it. Whether there is more to read is asked of the pod, and a container
that has ended is read once more, so that its last lines are not lost either.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.kube import INDEX, container_statuses
from workshop_lib.cluster.kubernetes.answers import problem, retry_after_s
from workshop_lib.cluster.kubernetes.api import Api, Lost, Pauses, read
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.kubernetes.resuming import Position
from workshop_lib.cluster.kubernetes.streams import StoppableStream, blocks
from workshop_lib.cluster.records import LogLine
from workshop_lib.errors import NotFoundError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = [
    "LOOK_EVERY_S",
    "LOST_LOG",
    "ContainerLog",
    "Gap",
    "Lines",
    "LogGapWarning",
]

Json = Mapping[str, Any]
Lines = Iterator[LogLine]
"""A batch of lines."""


class LogGapWarning(UserWarning):
    """Lines of a log may be missing, because their node has them no more."""


@dataclass(frozen=True)
class Gap:
    """Stands between two batches where lines may be missing.

    Attributes:
        text: Whose, which, and why.
    """

    text: str


LOST_LOG = "unable to retrieve container logs for "
"""How the kubelet begins its only line, with status 200, when it has deleted a run's log."""

SILENT_S = 300.0
"""A stream that is silent for so long is opened anew: it may be dead."""

LOOK_EVERY_S = 1.0
"""How often what is followed is looked at: for a restart, new pods, or its end."""

MOST_BARREN = 200
"""So often in a row a stream may break before it comes to new lines."""


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
        self._reader = StoppableStream()
        self._heard = False
        self._gone = False
        self._same_run = True
        index = (pod["metadata"].get("annotations") or {}).get(INDEX)
        self._who = (self._name, None if index is None else int(index), container)

    def stop(self) -> None:
        """Make the reading end, from another thread."""
        self._reader.stop()

    def batches(self) -> Generator[Lines | Gap, None, None]:
        """The lines, each once, in batches as they come, and where some may be missing.

        Raises:
            WorkshopError: The server refuses them, or stays away.
        """
        if not self._follow:
            yield from self._whole(previous=self._previous)
            if self._previous and self._gone:
                raise NotFoundError(
                    f"{self._name}: its node has deleted the log of the previous run (it keeps "
                    "one); logs() has the last run's"
                )
            return
        breaks, run = _Breaks(self._api.tries), None
        while not self._reader.stopped.is_set():
            pod = self._api.get(resource_of_kind("Pod"), self._namespace, self._name)
            if pod is None or pod["metadata"]["uid"] != self._uid:
                return
            status = container_statuses(pod).get(self._container, {})
            if run is not None and (restarts := status.get("restartCount", 0) - run) > 0:
                yield from self._before_restart(restarts)
            run = status.get("restartCount", 0)
            if "terminated" in (status.get("state") or {}):
                yield from self._whole()
                if _has_ended(pod, self._container):
                    return
                self._reader.stopped.wait(LOOK_EVERY_S)
                continue
            try:
                for lines in self._stream(follow=True):
                    breaks.brought = True
                    yield lines
                self._reader.stopped.wait(0.0 if breaks.brought else LOOK_EVERY_S)
                breaks.brought = False
            except Lost as error:
                self._reader.stopped.wait(self._pause_s(breaks, error))

    def _before_restart(self, restarts: int) -> Iterator[Lines | Gap]:
        """What a container wrote last before it was started again."""
        self._same_run, self._gone = restarts == 1, False
        yield from self._whole(previous=True)
        if restarts > 1:
            kept = "its node keeps only the run before the last restart"
            yield Gap(f"{self._name} was restarted {restarts} times: lines may be missing, {kept}")
        elif self._gone:
            kept = "its node had deleted that run's log"
            yield Gap(f"{self._name} was restarted: its last lines may be missing, {kept}")
        self._same_run = False  # a new run repeats nothing of the one before

    def _whole(self, *, previous: bool = False) -> Iterator[Lines | Gap]:
        """What is there of a run, to its end."""
        breaks = _Breaks(self._api.tries)
        while not self._reader.stopped.is_set():
            try:
                for lines in self._stream(follow=False, previous=previous):
                    breaks.brought = True
                    yield lines
                return
            except Lost as error:
                self._reader.stopped.wait(self._pause_s(breaks, error))

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

    def _stream(self, *, follow: bool, previous: bool = False) -> Iterator[Lines | Gap]:
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
        with self._reader.reading(response) as goes_on:
            if not goes_on:
                return
            if response.status != 200:
                self._refused(response)
                return
            yield from self._lines(response, whole=not follow)

    def _lines(self, response: BaseHTTPResponse, *, whole: bool) -> Iterator[Lines | Gap]:
        """Batches of a stream's new lines; `whole`: half a line at its clean end is a line."""
        rest = b""
        for block in blocks(response):
            self._heard = True
            data = rest + block if rest else block
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end and (texts := self._position.new(_split(data[:end]))):
                yield from self._missing()
                yield _log_lines(*self._who, texts)
        if rest.startswith(LOST_LOG.encode()):
            self._gone = True
        elif whole and rest and (texts := self._position.new(_split(rest))):
            yield from self._missing()
            yield _log_lines(*self._who, texts)

    def _missing(self) -> Iterator[Gap]:
        """Before new lines: whether others of the same run may be missing."""
        between, self._position.gap = self._position.gap, ""
        if between and self._same_run:
            yield Gap(
                f"{self._name}: lines between {between} may be missing: its node had rotated the "
                "log before they were read, and gives only the newest file"
            )
        self._same_run = True

    def _refused(self, response: BaseHTTPResponse) -> None:
        """Nothing to read is no error; trouble that passes is a lost stream."""
        answer = read(response)
        if answer.status in (400, 404):  # it has not begun, or has no such run, or is gone
            return
        if answer.is_worth_retrying:
            asked_s = retry_after_s(answer.headers)
            self._reader.stopped.wait(min(asked_s or 0.0, 60.0))
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


def _log_lines(pod: str, rank: int | None, container: str, texts: list[str]) -> Lines:
    """Texts as lines of a log, each made when it is asked for.

    A list of them would live long enough for the garbage collector to look through it. Made
    by map(), which takes half the time of calls of LogLine.
    """
    fields = zip(repeat(pod), repeat(rank), repeat(container), texts, strict=False)
    return map(tuple.__new__, repeat(LogLine), fields)


def _split(data: bytes) -> list[str]:
    lines = data.decode(errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines] if b"\r" in data else lines
