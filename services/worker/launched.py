"""A step whose work is queued on the device, and its result once the device is done.

`Engine.launch` makes it on the device thread; `finish` may run on another thread, so that the next step is launched
while this one is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from services.worker.download import Mark, ms_between, wait
from services.worker.prompt_logprobs import PromptLogprobs
from services.worker.sampling.logprobs import Asked
from shared.messages.step import StepPlan, StepResult, StepTiming


@dataclass(frozen=True, slots=True)
class Marks:
    """Points of the step on the device, in order."""

    begun: Mark
    prepared: Mark
    forwarded: Mark
    masked: Mark
    done: Mark


@dataclass(frozen=True, slots=True)
class Launched:
    """What the device will have computed when it passes `marks.done`. Made by rank 0."""

    plan: StepPlan
    tokens: Tensor
    """[S] int64 on the host"""
    asked: Asked | None
    prompt: PromptLogprobs | None
    marks: Marks
    before: Mark
    """Where the step before ended."""
    queued_ms: float
    launch_ms: float

    def finish(self) -> StepResult:
        """Wait for the device.

        Raises:
            RuntimeError: from torch, the device failed.
        """
        wait(self.marks.done)
        tokens = self.tokens.numpy().astype(np.int32)
        none = (None, None, None)
        logprobs, top_ids, top = none if self.asked is None else self.asked.arrays(len(tokens))
        counts, prompt, prompt_ids, prompt_top = (None, *none) if self.prompt is None else self.prompt.arrays()
        return StepResult(
            self.plan.engine_id, self.plan.session, self.plan.seq, tokens,
            logprobs=logprobs, top_ids=top_ids, top_logprobs=top,
            prompt_counts=counts, prompt_logprobs=prompt, prompt_top_ids=prompt_ids, prompt_top_logprobs=prompt_top,
            timing=self._timing(),
        )  # fmt: skip

    def _timing(self) -> StepTiming:
        marks = self.marks
        return StepTiming(
            queued_ms=self.queued_ms,
            launch_ms=self.launch_ms,
            idle_ms=ms_between(self.before, marks.begun),
            prepare_ms=ms_between(marks.begun, marks.prepared),
            forward_ms=ms_between(marks.prepared, marks.forwarded),
            mask_wait_ms=ms_between(marks.forwarded, marks.masked),
            sample_ms=ms_between(marks.masked, marks.done),
        )
