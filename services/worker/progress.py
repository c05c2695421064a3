"""Which plans came from the bus and which are done: what `EngineInfo` tells, so that the scheduler notices a lost one.

Knows nothing of devices; `service.py` feeds it on the event loop, in order.
"""

from __future__ import annotations

from shared import messages as m


class Progress:
    """Where a rank stands in the session whose plans it receives. Lives as long as the process."""

    def __init__(self) -> None:
        self.session = ""
        self.received_seq = -1
        """Last plan that came without a gap before it: it stays where the gap is."""
        self.last_seq = -1
        """Last plan that is done: answered, refused, or ignored behind a refused one."""

    def received(self, plan: m.StepPlan) -> None:
        """A plan came from the bus."""
        if plan.session == self.session:
            self.received_seq += plan.seq == self.received_seq + 1
        elif plan.seq == 0:
            self.session, self.received_seq, self.last_seq = plan.session, 0, -1

    def done(self, plan: m.StepPlan) -> None:
        """Nothing more will come of this plan."""
        if plan.session == self.session:
            self.last_seq = plan.seq
