"""What the containers of a workload wrote: read whole, or followed.

A log is followed by asking for what is new (`sinceTime`), a moment after the last answer. The
server cuts that time to whole seconds, and an answer may break off anywhere, so each next one
begins a second before the last line: what was given since then is dropped. Every line comes once.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain, repeat
from operator import itemgetter

import urllib3

from workshop_lib.cluster.kube import INDEX, Json, container_statuses, is_true
from workshop_lib.cluster.kubernetes.answers import problem
from workshop_lib.cluster.kubernetes.api import Api, Lost, in_short, read
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.records import LogLine
from workshop_lib.errors import NotFoundError

__all__ = ["LOST_LOG", "LogGapWarning", "read_logs"]

LOST_LOG = "unable to retrieve container logs for "
"""How the kubelet begins its only line, with status 200, when it has deleted a run's log."""

LOOK_EVERY_S = 1.0
"""How often what is followed is asked for more."""

MOST_BARREN = 250
"""So often in a row an answer may break off before it comes to new lines."""

BLOCK_BYTES = 1 << 20
SECOND = len("2026-11-21T04:52:49")

# Logs have millions of lines: what is done for each is done by map(), without bytecode.
_text_of, _tenth_of = itemgetter(2), itemgetter(slice(10, 11))


class LogGapWarning(UserWarning):
    """Lines of a log may be missing, because their node has them no more."""


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

    Where the node had rotated or deleted lines before they were read, a `LogGapWarning` says so.
    """
    body, pods = api.workload(namespace, kind, name)
    if previous and not any(_begun(pod, previous=True) for pod in pods):
        raise NotFoundError(f"{kind}/{name}: nothing was restarted: there is no previous run")
    if not follow or previous:
        for pod in pods:
            for container in _begun(pod, previous=previous):
                log = _Log(api, namespace, pod, container, tail)
                for batch in log.batches(previous=previous):
                    yield from batch
                if previous and log.deleted:
                    raise NotFoundError(
                        f"{pod['metadata']['name']}: its node has deleted the log of the previous "
                        "run (it keeps one); logs() has the last run's"
                    )
        return
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    logs: dict[tuple[str, str], _Log] = {}
    while True:
        over = _is_over(body)  # before its logs are read: what comes later is not missed
        for pod in pods:
            for container in _begun(pod, previous=False):
                key = (pod["metadata"]["uid"], container)
                if key not in logs:
                    logs[key] = _Log(api, namespace, pod, container, tail)
                for batch in logs[key].news(pod, ended=over):
                    yield from batch
        tail = None  # of what was there at first; new pods are read from their beginning
        if over or (deadline is not None and time.monotonic() > deadline):
            return
        time.sleep(LOOK_EVERY_S)
        try:
            body, pods = api.workload(namespace, kind, name)
        except NotFoundError:  # deleted meanwhile: what is there is read to its end
            body = {**body, "status": _ENDED}


_ENDED = {"phase": "Succeeded", "conditions": [{"type": "Complete", "status": "True"}]}


def _is_over(body: Json) -> bool:
    """Whether a workload will start no more pods."""
    if body["kind"] == "Pod":
        return (body.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return is_true(body, "Complete") or is_true(body, "Failed")


def _begun(pod: Json, *, previous: bool) -> list[str]:
    """The containers of a pod that have written something, or may have."""
    return [
        name
        for name, status in container_statuses(pod).items()
        if status.get("restartCount")
        or (not previous and "waiting" not in (status.get("state") or {"waiting": {}}))
    ]


class _Log:
    """The log of one container, and how far it was read.

    Attributes:
        deleted: The node had deleted what was asked for last.
    """

    def __init__(
        self, api: Api, namespace: str, pod: Json, container: str, tail: int | None
    ) -> None:
        metadata = pod["metadata"]
        index = (metadata.get("annotations") or {}).get(INDEX)
        self._api, self._container, self._tail = api, container, tail
        self._path = resource_of_kind("Pod").path(namespace, metadata["name"]) + "/log"
        self._pod: str = metadata["name"]
        self._rank = None if index is None else int(index)
        self._restarts: int | None = None
        self._is_read = False  # to the end of a run that has ended
        self._recent: list[list[str]] = []  # what was given last: two seconds, or more
        self._last = ""  # the last line's time
        self._said: set[str] = set()  # the kubelet's own lines, which have no time
        self.deleted = False

    def news(self, pod: Json, *, ended: bool) -> Iterator[Iterator[LogLine]]:
        """What was written since the last time, over restarts; `ended`: no more will come."""
        status = container_statuses(pod)[self._container]
        restarts = status.get("restartCount", 0)
        more = restarts - self._restarts if self._restarts is not None else 0
        if more > 1:  # of the runs in between nothing is left
            why = "its node keeps only the run before the last restart"
            self._warn(f"was restarted {more} times: lines", why)
            self._recent, self._last = [], ""
        if more:
            yield from self.batches(previous=True)
            if self.deleted and more == 1:
                self._warn("was restarted: its last lines", "its node had deleted that run's log")
            self._recent, self._last = [], ""  # a new run repeats nothing of the one before
        self._restarts = restarts
        if self._is_read and not more:
            return
        over = "terminated" in (status.get("state") or {})
        yield from self.batches(whole=over or ended)
        self._is_read = over

    def batches(self, *, previous: bool = False, whole: bool = True) -> Iterator[Iterator[LogLine]]:
        """What is there and was not given yet; `whole`: half a line at the end is a line."""
        barren, self.deleted = 0, False
        while True:
            brought = False
            try:
                for lines in self._new(self._answer(previous=previous, whole=whole)):
                    brought = True
                    texts = map(_text_of, map(str.partition, lines, repeat(" ")))
                    who = repeat(self._pod), repeat(self._rank), repeat(self._container)
                    # In half the time of LogLine(...), which looks at each argument.
                    yield map(tuple.__new__, repeat(LogLine), zip(*who, texts, strict=False))
                return
            except (urllib3.exceptions.HTTPError, OSError) as error:
                barren = 0 if brought else barren + 1
                if barren > MOST_BARREN:
                    raise Lost(
                        f"the log of {self._pod} broke off {barren} times ({in_short(error)}); "
                        "read it again with logs()"
                    ) from None
                time.sleep(0.02)

    def _warn(self, what: str, why: str) -> None:
        text = f"{self._pod} {what} may be missing: {why}"
        warnings.warn(text, LogGapWarning, stacklevel=4)

    def _answer(self, *, previous: bool, whole: bool) -> Iterator[list[str]]:
        """One answer of the server, in batches of whole lines."""
        params = {"container": self._container, "timestamps": "true"}
        params |= {"previous": "true"} if previous else {}
        if self._last:
            zone = "Z" if self._last.endswith("Z") else self._last[-6:]
            params["sinceTime"] = self._floor() + zone
        elif self._tail is not None:
            params["tailLines"] = str(self._tail)
        response = self._api.open("GET", self._path, params=params)
        if response.status != 200:
            answer = read(response)
            if answer.status in (400, 404):  # it has not begun, has no such run, or is gone
                return
            raise problem(answer, f"the log of {self._pod}")
        rest = b""
        try:
            for block in response.stream(BLOCK_BYTES):
                data = rest + block
                end = data.rfind(b"\n") + 1
                rest = data[end:]
                if end:
                    yield _split(data[:end])
        finally:
            response.close()
        if rest.startswith(LOST_LOG.encode()):
            self.deleted = True
        elif rest and whole:
            yield _split(rest)

    def _floor(self) -> str:
        """From which second on the server is asked: lines may be a little out of order."""
        when = datetime.fromisoformat(self._last[:SECOND]) - timedelta(seconds=1)
        return when.isoformat()

    def _new(self, batches: Iterator[list[str]]) -> Iterator[list[str]]:
        """Of an answer's lines those that were not given yet, each with a time before its text."""
        seen = Counter(chain.from_iterable(self._recent))
        until, missing = self._last[:SECOND], bool(self._recent)
        for lines in batches:
            lines = self._timed(lines)
            if seen:
                fresh = []
                for line in lines:
                    if seen.get(line, 0):
                        seen[line] -= 1
                        missing = False
                    elif missing and self._tail is not None and line[:SECOND] <= until:
                        continue  # before the last lines that were asked for
                    else:
                        fresh.append(line)
                if lines and lines[-1][:SECOND] > until:
                    seen.clear()
                lines = fresh
            if not lines:
                continue
            if missing:  # nothing of what was read before is there: others may be missing, too
                between = f"{self._last} and {lines[0].partition(' ')[0]}"
                why = "only the newest file of a log is given"
                self._warn(f"has rotated its log: lines between {between}", why)
                missing = False
            self._note(lines)
            yield lines

    def _timed(self, lines: list[str]) -> list[str]:
        """Lines without a time (words of the kubelet's own) get the last one, and come once."""
        if all(map("T".__eq__, map(_tenth_of, lines))):
            return lines
        last, timed = self._last or "1970-01-01T00:00:01.000000000Z", []
        for line in lines:
            if line[10:11] == "T":
                last = line.partition(" ")[0]
                timed.append(line)
            elif line not in self._said:
                self._said.add(line)
                timed.append(f"{last} {line}")
        return timed

    def _note(self, lines: list[str]) -> None:
        """Remember what may come again."""
        self._last = max(self._last, lines[-1].partition(" ")[0])
        floor = self._floor()
        self._recent = [each for each in self._recent if each[-1] >= floor] + [lines]


def _split(data: bytes) -> list[str]:
    lines = data.decode(errors="replace").removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if b"\r" in data else lines
