"""Reading what containers wrote: whole lines, each with its pod and rank, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import INDEX, container_statuses
from workshop_lib.cluster.local import status
from workshop_lib.cluster.local.paths import StatePaths
from workshop_lib.cluster.records import LogLine
from workshop_lib.errors import NotFoundError

__all__ = ["read_logs"]

LOOK_EVERY_S = 0.1

Pod = Mapping[str, Any]


def read_logs(
    paths: StatePaths,
    key: str,
    *,
    follow: bool,
    previous: bool,
    tail: int | None,
    timeout_s: float | None,
) -> Iterator[LogLine]:
    """The lines that a workload's containers wrote, as `LocalCluster.logs` gives them."""
    look = status.look(paths, key)
    restarted = (c["restartCount"] for pod in look.pods for c in container_statuses(pod).values())
    if previous and not any(restarted):
        raise NotFoundError(f"{key}: nothing was restarted: there is no previous run")
    deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    reader = _LogReader(paths.log_folder(key), tail=tail, previous=previous)
    while True:
        late = time.monotonic() > deadline
        over = not follow or late or look.lost or status.is_over(look.seen)
        yield from reader.read(look.pods, over=over)
        if over:
            return
        time.sleep(LOOK_EVERY_S)
        # Asked before reading: what is written until the end is read after it is known.
        try:
            look = status.look(paths, key)
        except NotFoundError:  # deleted while it was followed
            yield from reader.read([], over=True)
            return


class _LogReader:
    """Reads the logs of one workload's pods, each line once; `tail` counts what is there."""

    def __init__(self, folder: Path, *, tail: int | None, previous: bool) -> None:
        self.folder, self.tail, self.previous = folder, tail, previous
        self._offsets: dict[Path, int] = {}
        self._begun: dict[tuple[str, str], int] = {}
        self._pods: dict[str, Pod] = {}

    def read(self, pods: list[dict[str, Any]], *, over: bool) -> Iterator[LogLine]:
        """The lines that are new since the last call; pods that are gone are read out.

        When it is over, nothing more will be written: half a line at the end is a line, too.
        """
        now: dict[str, Pod] = {pod["metadata"]["name"]: pod for pod in pods}
        for name, pod in {**self._pods, **now}.items():
            yield from self._pod_lines(name, pod, over=over or name not in now)
        self._pods = now
        self.tail = None

    def _pod_lines(self, pod_name: str, pod: Pod, *, over: bool) -> Iterator[LogLine]:
        rank = pod["metadata"]["annotations"].get(INDEX)
        for name, each in container_statuses(pod).items():
            last = each["restartCount"]
            begun = self._begun.setdefault((pod_name, name), last)
            ended = "terminated" in each["state"] or "terminated" in each["lastState"]
            for run in range(last - 1, last) if self.previous else range(begun, last + 1):
                final = over or run < last or ("running" not in each["state"] and ended)
                for text in self._new_lines(self.folder / pod_name / name / f"{run}.log", final):
                    yield LogLine(pod_name, None if rank is None else int(rank), name, text)
            self._begun[(pod_name, name)] = last

    def _new_lines(self, file: Path, final: bool) -> Iterator[str]:
        """Whole lines of a file that were not given yet; a last half line when it is final."""
        offset = self._offsets.get(file, 0)
        try:
            with file.open("rb") as log:
                log.seek(offset)
                data = log.read()
        except FileNotFoundError:
            return
        end = len(data) if final else data.rfind(b"\n") + 1
        self._offsets[file] = offset + end
        lines = data[:end].removesuffix(b"\n").split(b"\n") if end else []
        if self.tail is not None:
            lines = lines[-self.tail :] if self.tail else []
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
