"""`apply`: what stands between a learner and a change: rendering, and importing the library."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from workshop_lib.cluster import manifests
from workshop_lib.errors import WorkshopError
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.measures.frame import Bar, Comparison, Quantity, Side, timed_ms

__all__ = ["Apply"]

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Apply:
    """The entry.

    Attributes:
        profile, component: What is rendered.
        name, rounds: See `Entry`.
    """

    profile: str = "local"
    component: str = "vllm"
    name: str = "apply"
    rounds: int = 15

    @contextlib.contextmanager
    def prepare(self, say: Callable[[str], None]) -> Iterator[Sequence[Comparison]]:
        """Everything once uncounted, from a cold disk; see `Entry`."""
        folder = manifests.Component(self.profile, self.component).folder
        kubectl = [manifests._kubectl(), "kustomize", str(folder)]
        comparisons = [
            Comparison(
                f"{self.name}: rendering {self.profile}/{self.component}",
                {
                    "manifests.render": _side(
                        lambda: manifests.render(self.profile, self.component)
                    ),
                    "kubectl kustomize": _side(lambda: _run(kubectl)),
                },
                [Quantity("wall_ms", "wall time", "ms")],
            ),
            Comparison(
                f"{self.name}: importing the library, in a fresh process",
                {
                    "import workshop_lib": _side(lambda: _python("import workshop_lib")),
                    "bare Python": _side(lambda: _python("pass")),
                },
                [Quantity("wall_ms", "wall time", "ms", Bar("median", "at most", 500))],
            ),
        ]
        for comparison in comparisons:
            for name, side in comparison.sides.items():
                say(f"{name}: once uncounted")
                side()
        yield comparisons


def _side(action: Callable[[], object]) -> Side:
    return lambda: {"wall_ms": timed_ms(action)}


def _python(code: str) -> None:
    _run([sys.executable, "-c", code])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise WorkshopError(f"`{' '.join(command)}` ended with status {done.returncode}: {last}")
