"""When to start a process again after it ended: exponential back-off, and when to give up."""

from __future__ import annotations

from dataclasses import dataclass

USAGE_EXIT_STATUS = 2
"""What a service exits with when its flags or files are wrong: starting it again cannot help."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Delays double from `first_delay_s` to `max_delay_s`; `healthy_s` of being ready starts over."""

    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    healthy_s: float = 60.0
    max_start_failures: int = 5
    """Ends in a row before the first time it was ever ready that count as "cannot start"."""


class Restarts:
    """The history of one unit. Lives as long as the supervisor; asked once after each end."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._ever_ready = False

    def delay_after(self, exit_status: int, ready_for_s: float | None) -> float | None:
        """Seconds to wait before the next start; None = give up.

        Args:
            exit_status: of the process that ended first; negative for a signal.
            ready_for_s: how long it had been ready, None if it never got there.
        """
        if ready_for_s is not None:
            self._ever_ready = True
            if ready_for_s >= self._policy.healthy_s:
                self._failures = 0
        self._failures += 1
        hopeless = exit_status == USAGE_EXIT_STATUS or self._failures >= self._policy.max_start_failures
        if hopeless and not self._ever_ready:
            return None
        doublings = min(self._failures - 1, 32)
        return min(self._policy.first_delay_s * 2.0**doublings, self._policy.max_delay_s)
