"""Life of services: heartbeats, engine announcements, information, cache events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.wire import message

State = Literal["starting", "ready", "draining"]


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What a gateway needs to know of a tokenizer, to answer for its model, and of vision; zero or empty elsewhere."""

    model: str = ""
    """Served model name."""
    context_length: int = 0
    vocab_size: int = 0
    created_s: int = 0
    """Unix time of start."""
    memory: str = ""
    """Vision only: the folder in shared memory that it sees (`shared.held_folder`)."""


@message()
class Heartbeat:
    """Every service, every second, and at once when its state changes."""

    service: str
    """gateway, tokenizer, vision, scheduler or worker."""
    name: str
    """Stable name given by the operator, for example `tokenizer-0`."""
    id: str
    """Name plus a suffix that is new with every start: a restarted process is another instance."""
    state: State
    pid: int
    host: str
    started_s: float
    """Unix time."""
    facts: ServiceFacts = field(default_factory=ServiceFacts)
    engines_ready: int = 0
    """Scheduler only."""


@message()
class Goodbye:
    """An instance has ended: published by itself after draining, or by the supervisor that saw it die."""

    service: str
    name: str
    id: str
    """Empty when the supervisor does not know it: then every instance of `name` older than `at_s` is gone."""
    at_s: float
    """Unix time."""
    reason: str = ""


@message()
class EngineInfo:
    """Rank 0 -> its scheduler, every second: the engine is there, this is its size, this is where it stands."""

    engine_id: str
    name: str
    """Stable name; an engine with a new id and the same name replaces the old one."""
    state: State
    model: str
    tp_size: int
    device: str
    dtype: str
    attention_backend: str
    page_size: int
    num_pages: int
    """Pages that may be used; ids 1..num_pages. Page 0 is the worker's own (padding)."""
    max_rows: int
    """Row ids 0..max_rows-1."""
    context_length: int
    vocab_size: int
    prefill_tokens: int = 512
    """Prompt tokens that one step should compute at most; a scheduler without a wish of its own follows."""
    mask_slots: int = 0
    """Places in the bank of masks; 0 = the engine cannot be constrained."""
    media_bytes: int = 0
    """Embeddings of images and videos that each rank holds at most; 0 = the model takes text only."""
    session: str = ""
    """Of the plans that this rank receives."""
    received_seq: int = -1
    """Last plan of `session` that came from the bus without a gap before it; it may still wait to be executed."""
    last_seq: int = -1
    """Last plan of `session` that is done: its result, or a fault, was sent."""
    memory_bytes: int = 0
    """Resident set of the process (CPU) or memory allocated on the device."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One engine as the scheduler sees it. Pages: free + cached + protected + private = total."""

    engine_id: str
    name: str
    state: str
    device: str
    tp_size: int
    page_size: int
    total_pages: int
    free_pages: int
    evictable_pages: int
    """In the radix cache, held by nobody."""
    protected_pages: int
    """In the radix cache, held by running requests."""
    private_pages: int
    """Held by running requests only."""
    running_reqs: int
    max_rows: int
    in_flight_steps: int
    steps: int


@message(max_bytes=1024 * 1024)
class SchedulerInfo:
    """Answer to `scheduler.<id>.info`."""

    scheduler_id: str
    queue_reqs: int
    running_reqs: int
    engines: list[EngineStats]
    requests_total: int
    retractions_total: int
    prompt_tokens_total: int
    cached_tokens_total: int
    generation_tokens_total: int
    step_ms: dict[str, float] = field(default_factory=dict)
    """Mean milliseconds per step by stage (order, admit, plan, publish, apply, wait)."""


@message()
class Empty:
    """A request without parameters."""


@message()
class Flushed:
    """Answer to a flush: pages released, and pages that running requests still hold."""

    released_pages: int
    held_pages: int


@message(max_bytes=4 * 1024 * 1024)
class MetricsText:
    """Prometheus text exposition of one instance."""

    service: str
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class KvBlock:
    """One page of the radix cache: hash of its tokens and of all before it, and its parent's hash."""

    hash: int
    parent: int | None
    token_ids: list[int]
    """Tokens of an image or video are one negative number, the scheduler's own name of it as long as it remembers it:
    they match no prompt of words, and no other scheduler's."""


@message(max_bytes=8 * 1024 * 1024)
class KvEvents:
    """What changed in one engine's radix cache; `seq` has no gaps per engine."""

    engine_id: str
    seq: int
    page_size: int
    stored: list[KvBlock] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    cleared: bool = False
