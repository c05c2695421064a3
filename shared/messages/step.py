"""Scheduler <-> worker: one `StepPlan` per forward step, one `StepResult` back.

Plans of a session are numbered without gaps. All ranks of an engine receive the same plan; rank 0 answers. Where rows
are constrained by grammars, a plan's `StepMasks` follow it.
Dimension letters: E extend rows, D decode rows, K page runs, X = ext_lens.sum() tokens, N runs of media, S sampled rows
(extend rows with ext_sample first, in order, then decode rows), B top logprobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared.wire import message

I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowInit:
    """A row is given to a request: its page table becomes empty and its sampling state is replaced."""

    row: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """None: the engine draws one."""
    num_generated: int = 0
    """Tokens already generated (after a retraction); position of the random stream and of min_new_tokens."""
    min_new_tokens: int = 0
    stop_ids: list[int] = field(default_factory=list)
    """EOS and stop ids, masked until min_new_tokens; empty when min_new_tokens is 0."""
    logit_bias: dict[str, float] = field(default_factory=dict)
    return_logprob: bool = False
    top_logprobs_num: int = 0
    history_ids: list[int] = field(default_factory=list)
    """Prompt ids, only for rows with a repetition penalty."""
    position_delta: int = 0
    """Added to an index to give the rotary position of a token without `ext_positions`."""
    output_ids: list[int] = field(default_factory=list)
    """Ids generated before a retraction, only for rows with any penalty."""


@message(max_bytes=8 * 1024 * 1024)
class StepPlan:
    """One forward step.

    Order of application: `new_rows`, then page runs, then extend rows and decode rows together as one forward.
    A decode row feeds the row's own last sampled token at the row's next position; the worker keeps both.
    An extend row feeds `ext_tokens` at `ext_starts`, which may lie below the row's length (rewind).
    """

    engine_id: str
    session: str
    """`<scheduler id>.<n>`, where answers go. A plan with seq 0 of a new session resets all rows."""
    seq: int
    new_rows: list[RowInit] = field(default_factory=list)
    page_rows: I32 | None = None
    """[K] row whose page table grows"""
    page_starts: I32 | None = None
    """[K] first page of the run"""
    page_lens: I32 | None = None
    """[K] pages in the run, appended in the order given"""
    ext_rows: I32 | None = None
    """[E]"""
    ext_starts: I32 | None = None
    """[E] position of the first token, = tokens already in the KV pool"""
    ext_lens: I32 | None = None
    """[E] >= 1"""
    ext_tokens: I32 | None = None
    """[X]"""
    ext_sample: U8 | None = None
    """[E] 1: sample after the last token (last chunk of a prompt)"""
    ext_lp_starts: I32 | None = None
    """[E] return prompt logprobs of tokens at positions >= this that this chunk's logits predict; -1 = none.
    A chunk over positions [s, s+n) predicts tokens s+1 .. s+n; the last one only if ext_next says so."""
    ext_next: I32 | None = None
    """[E] the prompt token after the chunk, -1 when the chunk ends the prompt; present with ext_lp_starts"""
    ext_forced: I32 | None = None
    """[E] last tokens of the chunk that count as generated: a grammar forced them. None = none anywhere"""
    ext_positions: I32 | None = None
    """[3, X] rotary positions of time, height and width; None = all three are index + the row's `position_delta`"""
    ext_media: I32 | None = None
    """[N, 4] tokens whose input is an embedding of an image or video, not that of their id: first of them in
    `ext_tokens`, how many, slot (`StageMedia`), first row of its embeddings"""
    drop_media: I32 | None = None
    """Slots that no later plan names"""
    decode_rows: I32 | None = None
    """[D]; None = the same decode rows as in the plan before; an empty array = none"""
    masked_rows: I32 | None = None
    """[M] sampled rows whose sampling waits for this plan's `StepMasks`; None = none"""


@message(max_bytes=8 * 1024 * 1024)
class StepMasks:
    """What the masked rows of a plan may sample. It follows the plan, while the plan's forward is computed.

    Masks are interned: each stays in a slot of the worker's bank, and rows name slots. New contents of slots take
    effect before this plan samples and after every earlier one did. Several messages may make up a plan's masks.
    Dimension letters: M rows, N masks sent whole, L masks sent as lists, V vocabulary.
    """

    engine_id: str
    session: str
    seq: int
    """Of the plan."""
    rows: I32
    """[M] distinct rows of the plan's `masked_rows`"""
    slots: I32
    """[M] slot of each row's mask; -1 = everything is allowed (the result will be ignored)"""
    new_slots: I32 | None = None
    """[N]"""
    new_masks: I32 | None = None
    """[N, ceil(V / 32)] bit 1 = allowed, least significant first"""
    list_slots: I32 | None = None
    """[L]"""
    list_counts: I32 | None = None
    """[L] tokens of each list, at least 1"""
    list_tokens: I32 | None = None
    """[sum(list_counts)] the allowed tokens"""


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Where a step's time went on rank 0, in milliseconds: by the device's clock, but for the first two."""

    queued_ms: float = 0.0
    """From arrival of the plan to the start of its execution."""
    launch_ms: float = 0.0
    """The host's time for the step; on a GPU it runs ahead of the device."""
    idle_ms: float = 0.0
    """The device had nothing to do since the step before."""
    prepare_ms: float = 0.0
    forward_ms: float = 0.0
    mask_wait_ms: float = 0.0
    """The forward was done and the masks of its rows were not there yet, or were being copied."""
    sample_ms: float = 0.0


@message(max_bytes=8 * 1024 * 1024)
class StepResult:
    """Rank 0's answer to one plan."""

    engine_id: str
    session: str
    seq: int
    tokens: I32
    """[S]"""
    logprobs: F32 | None = None
    """[S] of the sampled token under the model's raw distribution (before penalties, bias and temperature)."""
    top_ids: I32 | None = None
    """[S, B] padded with -1"""
    top_logprobs: F32 | None = None
    """[S, B]"""
    prompt_counts: I32 | None = None
    """[E] prompt logprobs of each extend row"""
    prompt_logprobs: F32 | None = None
    """[sum(prompt_counts)]"""
    prompt_top_ids: I32 | None = None
    """[sum(prompt_counts), B]"""
    prompt_top_logprobs: F32 | None = None
    """[sum(prompt_counts), B]"""
    timing: StepTiming = field(default_factory=StepTiming)


@message()
class EngineFault:
    """A rank cannot go on with the session it is in: a gap in sequence numbers, or an error while executing a plan.

    The scheduler starts a new session on the engine and re-queues its requests with the tokens they have.
    """

    engine_id: str
    session: str
    seq: int
    reason: str
    """"gap" or "execution"."""
    message: str
