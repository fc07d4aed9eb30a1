"""What Ray Serve's autoscaler wants, computed from the same settings that it reads.

The formula is that of Ray 2.60's default policy (`ray/serve/autoscaling_policy.py`):
requests, running and queued, divided by the target, rounded up, between the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workshop_lib.errors import WorkshopError

__all__ = ["AutoscalingSettings", "desired_replicas"]


def desired_replicas(
    ongoing: float, target: float, *, min_replicas: int = 1, max_replicas: int = 100
) -> int:
    """The number of replicas that so many requests ask for.

    Args:
        ongoing: Requests that are running or queued, averaged over the look-back period.
        target: `target_ongoing_requests`: how many of them a replica should have.
        min_replicas: Never fewer.
        max_replicas: Never more.

    Raises:
        WorkshopError: The target is not positive, or the bounds are the wrong way round.

    Example:
        >>> desired_replicas(6, 2), desired_replicas(6, 4), desired_replicas(20, 2, max_replicas=4)
        (3, 2, 4)
    """
    if target <= 0:
        raise WorkshopError(f"target_ongoing_requests is {target:g}; it must be more than 0")
    if not 0 <= min_replicas <= max_replicas:
        raise WorkshopError(
            f"min_replicas {min_replicas} and max_replicas {max_replicas} leave no number between"
        )
    return max(min_replicas, min(max_replicas, math.ceil(ongoing / target)))


@dataclass(frozen=True)
class AutoscalingSettings:
    """The part of a deployment's `autoscaling_config` that decides when replicas change.

    Attributes:
        min_replicas: Never fewer.
        max_replicas: Never more.
        target_ongoing_requests: Requests, running and queued, that a replica should have.
        upscale_delay_s: For how long more replicas must be wanted.
        downscale_delay_s: For how long fewer replicas must be wanted.
        look_back_period_s: Over how long the number of requests is averaged.
    """

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float
    upscale_delay_s: float
    downscale_delay_s: float
    look_back_period_s: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AutoscalingSettings:
        """From an `autoscaling_config` with every field, as Serve's API gives it.

        Args:
            config: The fields by name; others are ignored.

        Raises:
            WorkshopError: One is missing.

        Example:
            >>> config = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2,
            ...     "upscale_delay_s": 2, "downscale_delay_s": 5, "look_back_period_s": 3}
            >>> AutoscalingSettings.from_config(config).replicas_for(6)
            3
        """
        try:
            return cls(**{name: config[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise WorkshopError(f"autoscaling_config has no {error}") from error

    def replicas_for(self, users: float) -> int:
        """Replicas for users who each always have one request in flight.

        Args:
            users: How many of them.
        """
        return desired_replicas(
            users,
            self.target_ongoing_requests,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
        )
