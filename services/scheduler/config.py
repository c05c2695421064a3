"""Configuration of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.config import CommonConfig, option
from shared.errors import ConfigError

SchedulePolicy = Literal["lpm", "fcfs", "priority"]


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Resolved once in `__main__`, passed down, never mutated."""

    common: CommonConfig = field(default_factory=CommonConfig)
    tokenizer_path: str = option(
        "", help="model directory with tokenizer.json and config.json; without it requests with grammars are refused",
        group="grammar", metavar="DIR",
    )  # fmt: skip
    schedule_policy: SchedulePolicy = option(
        "lpm", help="order of the waiting queue: longest cached prefix, arrival, or priority", group="scheduler"
    )
    starvation_limit_s: float = option(
        5.0, help="seconds after which a waiting request goes first whatever the policy", group="scheduler"
    )
    chunked_prefill_size: int = option(
        0,
        help="most prompt tokens in one step; longer prompts are computed in chunks (0 = what the engine is sized for, "
        "-1 = no chunking)",
        group="scheduler",
    )
    pipeline_depth: int = option(
        0,
        help="steps sent to an engine before the first is answered; 1 = synchronous, 0 = 2, or 3 while its steps take "
        "under 1.6 ms",
        group="scheduler",
    )
    schedule_conservativeness: float = option(
        1.0, help="larger values admit fewer requests at once and retract less", group="scheduler"
    )
    disable_jump_forward: bool = option(
        False, help="sample every token of constrained requests, forced ones too", group="scheduler"
    )
    disable_radix_cache: bool = option(False, help="share no prefixes between requests", group="scheduler")
    max_queued_requests: int = option(2048, help="waiting requests before new ones get 429", group="scheduler")
    queue_timeout_s: float = option(120.0, help="seconds a request may wait to be started", group="scheduler")
    step_timeout_s: float = option(
        120.0, help="seconds without an answer to a step before the engine is taken as lost", group="scheduler"
    )
    grammar_backend: Literal["auto", "llguidance", "xgrammar"] = option(
        "auto",
        help="what enforces JSON schemas, regexes and the like; auto is llguidance, whose work per token is bounded; "
        "xgrammar only where you trust who sends grammars",
        group="grammar",
    )
    grammar_timeout_s: float = option(10.0, help="longest time to compile one grammar, seconds", group="grammar")
    grammar_memory_bytes: int = option(
        1 << 30, help="most memory that compiling takes in its process, bytes beyond the vocabulary", group="grammar"
    )
    grammar_cache_bytes: int = option(
        256 << 20, help="compiled grammars kept for the next request, bytes (estimated)", group="grammar"
    )
    grammar_workers: int = option(2, help="processes that compile grammars; started at the first one", group="grammar")
    max_waiting_grammars: int = option(
        256, help="different grammars that wait to be compiled before new ones get 429", group="grammar"
    )
    enable_kv_events: bool = option(False, help="publish stored and removed cache pages", group="scheduler")

    def __post_init__(self) -> None:
        if not 0 <= self.pipeline_depth <= 8:
            raise ConfigError(
                f"--pipeline-depth {self.pipeline_depth}: use 1 to 8, or 0 for the engine's steps to decide"
            )
        if self.chunked_prefill_size < -1:
            raise ConfigError(f"--chunked-prefill-size {self.chunked_prefill_size}: use a positive number, 0 or -1")
        if self.schedule_conservativeness <= 0:
            raise ConfigError(f"--schedule-conservativeness {self.schedule_conservativeness}: use a positive number")
        for name in ("starvation_limit_s", "queue_timeout_s", "step_timeout_s", "max_queued_requests",
                     "grammar_timeout_s", "grammar_memory_bytes", "grammar_cache_bytes", "grammar_workers",
                     "max_waiting_grammars"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: use a positive number")
