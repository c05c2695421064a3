"""Tells a plan or an answer that the bus lost from a step that merely takes long.

A gap in the numbers shows only when a later message comes, and with every plan of the pipeline unanswered none will.
But rank 0 says every second which plans it got and which it is done with. A plan that it got and is not done with
takes long; one that it did not get, or is done with although no answer came, was lost. Messages may be on their way
while it says so: two reports must say the same.

A plan that only another rank lost looks like a long step: rank 0 got it and waits for that rank. The rank reports the
gap with the next plan; where none comes, the group's own timeout in the worker and `--step-timeout-s` bound the wait.
"""

from __future__ import annotations

from services.scheduler.plan_draft import InFlight
from shared import messages as m

UNDER_WAY_S = 1.5
"""A younger plan may be on its way, or its answer."""
REPORTS_APART_S = 0.5
"""Reports that arrive closer together were waiting here, perhaps beside the answer: they count as one."""


class LostSteps:
    """What was suspected at the report before. One per session; the engine's owner feeds it."""

    def __init__(self) -> None:
        self._suspicion = ""
        self._since_s = 0.0

    def judge(self, info: m.EngineInfo, session: str, oldest: InFlight | None, now: float) -> str | None:
        """What was lost for certain, in words; None: nothing, or not certain yet.

        Args:
            oldest: the unanswered plan that was sent first.
            now: monotonic seconds, on the clock of `oldest.sent_s`.
        """
        lost = ""
        if oldest is not None and now - oldest.sent_s > UNDER_WAY_S:
            lost = _lost(info, session, oldest.seq)
        if lost != self._suspicion:
            self._suspicion, self._since_s = lost, now
        return lost if lost and now - self._since_s >= REPORTS_APART_S else None


def _lost(info: m.EngineInfo, session: str, seq: int) -> str:
    if info.session != session or info.received_seq < seq:
        return f"plan {seq} was lost on the bus"
    if info.last_seq >= seq:
        return f"the answer to plan {seq} was lost on the bus"
    return ""
