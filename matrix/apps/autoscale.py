"""How many replicas an app should have: a state machine without a clock or a cluster."""

from __future__ import annotations

import math

from matrix.spec import Replicas

_ASK_AGAIN_S = 30.0
"""A number that was asked for is asked for again after this, since the one who was asked may have been replaced."""


class Autoscaler:
    """Follows the outstanding requests of one app.

    The wanted number is outstanding / `target_in_flight`, rounded up, between `min` and `max`. It is raised when it was
    higher for `upscale_delay_s` (from zero at once: somebody is waiting), and lowered to the highest that was wanted in
    the last `downscale_delay_s`.

    Args:
        spec: The limits.
        current: Replicas that there are, or that were asked for.
    """

    def __init__(self, spec: Replicas, current: int) -> None:
        self._spec = spec
        self._current = current
        self._higher_since: float | None = None
        self._lower_since: float | None = None
        self._highest = 0
        self._asked_at = math.nan

    def desired(self, outstanding: float, now: float) -> int | None:
        """Look at the load.

        Args:
            outstanding: Requests under way and queued, of all replicas.
            now: Seconds.

        Returns:
            The number of replicas to ask for; None while nothing is to be changed.
        """
        wanted = math.ceil(outstanding / self._spec.target_in_flight)
        wanted = min(max(wanted, self._spec.min), self._spec.max)
        # What the limits themselves ask for is done at once.
        target = min(max(self._current, self._spec.min), self._spec.max)
        if target == self._current:
            target = self._following(wanted, now)
        if math.isnan(self._asked_at):
            self._asked_at = now
        if target == self._current and now - self._asked_at < _ASK_AGAIN_S:
            return None
        if target != self._current:
            self._higher_since = self._lower_since = None
        self._current, self._asked_at = target, now
        return target

    def _following(self, wanted: int, now: float) -> int:
        """The number after the delays."""
        if wanted > self._current:
            self._lower_since = None
            self._higher_since = now if self._higher_since is None else self._higher_since
            if self._current == 0 or now - self._higher_since >= self._spec.upscale_delay_s:
                return wanted
        elif wanted < self._current:
            self._higher_since = None
            if self._lower_since is None:
                self._lower_since, self._highest = now, wanted
            self._highest = max(self._highest, wanted)
            if now - self._lower_since >= self._spec.downscale_delay_s:
                return self._highest
        else:
            self._higher_since = self._lower_since = None
        return self._current
