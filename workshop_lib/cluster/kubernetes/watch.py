"""Watching: a copy of some objects that is kept current, whatever happens to the stream.

A watch ends for many reasons that say nothing about the objects: the server closes it
after some minutes, a proxy drops it, its version expires (410). `Mirror` goes on from
where it was, or lists again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from workshop_lib.cluster.kube import events_about, own_pods, pod_selector
from workshop_lib.cluster.kubernetes.answers import problem, retry_after_s
from workshop_lib.cluster.kubernetes.api import Api, Lost, Pauses, read
from workshop_lib.cluster.kubernetes.observe import get_workload
from workshop_lib.cluster.kubernetes.resources import Resource, resource_of_kind
from workshop_lib.cluster.kubernetes.streams import StoppableStream, chunks
from workshop_lib.cluster.records import Observation
from workshop_lib.errors import NotFoundError, WorkshopError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["Mirror", "watch"]

WATCH_S = 240
"""How long the server is asked to keep one watch open; then it is opened anew."""

TICK_S = 1.0
"""A watched workload is given at least this often: waits have a clock to look at."""


class Expired(Exception):
    """The version to go on from is too old: list again."""


class Mirror:
    """Objects of one kind, kept current by a thread until it is stopped.

    Args:
        api: The server.
        namespace: Where.
        resource: The kind.
        on_change: Called after each change, from the mirror's thread.
        labels: A label selector.
        fields: A field selector.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        resource: Resource,
        on_change: Callable[[], None],
        *,
        labels: str = "",
        fields: str = "",
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._resource = resource
        self._selectors = {"labels": labels, "fields": fields}
        self._on_change = on_change
        self._objects: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._reader = StoppableStream()
        self._brought = False
        self.error: WorkshopError | None = None
        name = f"watch {resource.plural}"
        self._version = self._list()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def objects(self) -> list[dict[str, Any]]:
        """The objects as they are now, as far as is known.

        Raises:
            WorkshopError: The server refuses to be watched, or does not answer any more.
        """
        with self._lock:
            if self.error is not None:
                raise self.error
            return list(self._objects.values())

    def stop(self) -> None:
        """End the thread and close its connection."""
        self._reader.stop()
        self._thread.join()

    def _list(self) -> str:
        items, version = self._api.list(self._resource, self._namespace, **self._selectors)
        with self._lock:
            self._objects = {item["metadata"]["uid"]: item for item in items}
        return version

    def _run(self) -> None:
        pauses = Pauses(self._api.tries)
        try:
            while not self._reader.stopped.is_set():
                self._brought = False
                try:
                    self._watch_once()
                    pauses, pause_s = Pauses(self._api.tries), 0.0 if self._brought else 0.2
                except (Expired, Lost) as error:
                    if self._brought:  # a stream that breaks now and then is no reason to end
                        pauses = Pauses(self._api.tries)
                    next_s = pauses.next_s()
                    if next_s is None and isinstance(error, Lost):
                        raise Lost(f"watch {self._resource.plural}: {error}") from None
                    pause_s = 10.0 if next_s is None else next_s
                    if isinstance(error, Expired):
                        self._version = self._list()
                        self._on_change()
                self._reader.stopped.wait(pause_s)
        except WorkshopError as error:
            if not self._reader.stopped.is_set():
                with self._lock:
                    self.error = error
                self._on_change()

    def _watch_once(self) -> None:
        """Follow one stream to its end."""
        params = {
            "watch": "true", "resourceVersion": self._version, "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
            **{f"{k[:-1]}Selector": v for k, v in self._selectors.items() if v},
        }  # fmt: skip
        response = self._api.open(
            "GET", self._resource.path(self._namespace), params=params, read_timeout_s=WATCH_S + 30
        )
        with self._reader.reading(response) as goes_on:
            if not goes_on:
                return
            if response.status != 200:
                self._refused(response)
            for line in _lines(response):
                self._take(_event(line))
                self._brought = True

    def _refused(self, response: BaseHTTPResponse) -> NoReturn:
        answer = read(response)
        if answer.status == 410:
            raise Expired
        if not answer.is_worth_retrying:
            raise problem(answer, f"watch {self._resource.plural}")
        if (asked_s := retry_after_s(answer.headers)) is not None:
            self._reader.stopped.wait(min(asked_s, 60.0))
        raise Lost(f"the server answered {answer.status}")

    def _take(self, event: dict[str, Any]) -> None:
        """One event: keep what it says, and its version to go on from."""
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            if item.get("code") == 410:
                raise Expired
            raise Lost(str(item.get("message", item)))
        self._version = item["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        uid = item["metadata"]["uid"]
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(uid, None)
            else:
                self._objects[uid] = item
        self._on_change()


def _event(line: bytes) -> dict[str, Any]:
    """A line of a watch; one that is none means that the stream is broken."""
    try:
        event: dict[str, Any] = json.loads(line)
        if event["type"] != "ERROR":
            metadata = event["object"]["metadata"]
            _ = metadata["resourceVersion"], event["type"] == "BOOKMARK" or metadata["uid"]
        elif not isinstance(event["object"], dict):
            raise TypeError("an error without words")
    except (ValueError, KeyError, TypeError) as error:
        # Such as a proxy's own error page: a thread that died of it would leave all as it was.
        said = line[:80].decode(errors="replace")
        raise Lost(f"it brought no event but {said!r} ({type(error).__name__})") from None
    return event


def _lines(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Whole lines of a stream; half a line before a clean end is dropped and comes again."""
    rest = b""
    for chunk in chunks(response):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line)


def watch(api: Api, namespace: str, kind: str, name: str) -> Generator[Observation, None, None]:
    """A workload as it is, and again after each change or a second.

    The generator owns threads and connections: close it, or leave the loop over it.

    Raises:
        NotFoundError: It is not there, or not any more.
    """
    body = get_workload(api, namespace, kind, name)
    uid, selector = body["metadata"]["uid"], pod_selector(body)
    changed = threading.Event()
    mirrors: list[Mirror] = []
    try:
        own = Mirror(
            api, namespace, resource_of_kind(kind), changed.set, fields=f"metadata.name={name}"
        )
        mirrors.append(own)
        if selector is not None:
            mirrors.append(
                Mirror(api, namespace, resource_of_kind("Pod"), changed.set, labels=selector)
            )
            mirrors.append(Mirror(api, namespace, resource_of_kind("Event"), changed.set))
        while True:
            changed.clear()
            seen = [mirror.objects() for mirror in mirrors]
            found = [item for item in seen[0] if item["metadata"]["uid"] == uid]
            if not found:
                raise NotFoundError(f"{kind}/{name} was deleted while it was waited for")
            body = {**found[0], "kind": kind}
            pods = own_pods(body, seen[1]) if len(seen) > 1 else []
            events = events_about(body, pods, seen[2]) if len(seen) > 1 else []
            yield Observation(body, pods, events)
            changed.wait(TICK_S)
    finally:
        for mirror in mirrors:
            mirror.stop()
