"""The workshop's exceptions: each is one line that says what failed, on what, and what to do.

In a notebook the line is all that is shown; in a script the traceback is there as usual.
"""

from __future__ import annotations

__all__ = ["WaitTimeoutError", "WorkshopError"]  # what notebooks catch


class WorkshopError(Exception):
    """An error that the workshop explains in one line.

    Example:
        >>> raise WorkshopError("vllm is not running; start it with cluster.apply('vllm')")
        Traceback (most recent call last):
        ...
        workshop_lib.errors.WorkshopError: vllm is not running; start it with cluster.apply('vllm')
    """

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ManifestError(WorkshopError):
    """A manifest or parameter is wrong, or asks for what this cluster cannot play."""


class ClusterError(WorkshopError):
    """The cluster refused or failed an operation."""


class NotFoundError(ClusterError):
    """The named object is not there."""


class WaitTimeoutError(ClusterError):
    """What was waited for did not happen in time."""


class ConnectError(ClusterError):
    """There is no configuration, no credentials that count, or no answer from the server."""


class ForbiddenError(ClusterError):
    """The credentials count, but do not allow this operation."""


class ConflictError(ClusterError):
    """Somebody else has set what was to be set, or has changed it meanwhile."""


class OperatorError(ClusterError):
    """The cluster lacks the operator that knows a kind of object."""


class ModelError(WorkshopError):
    """A model cannot be found, fetched or converted."""


class ServerError(WorkshopError):
    """A model server did not answer, or answered with an error."""


class EnvironmentError_(WorkshopError):
    """This machine or environment cannot run the workshop."""
