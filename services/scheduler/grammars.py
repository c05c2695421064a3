"""The scheduler's way to compiled grammars: the first one reads the model's vocabulary and makes a compiler."""

from __future__ import annotations

import asyncio

from services.scheduler.config import SchedulerConfig
from services.scheduler.grammar import Compiler, Grammar, Vocabulary, load_vocabulary
from shared.errors import ConfigError, InvalidRequest
from shared.grammar import GrammarSpec


class Grammars:
    """Lives as long as the scheduler; used from its event loop only."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._loading: asyncio.Future[Vocabulary] | None = None
        self._compiler: Compiler | None = None

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar of a spec.

        Raises:
            InvalidRequest: it is wrong, or this scheduler has no vocabulary to compile it for.
            Overloaded: too many grammars wait.
        """
        config = self._config
        if not config.tokenizer_path:
            raise InvalidRequest(
                "structured output needs a scheduler that was started with --tokenizer-path", param=spec.kind
            )
        if self._compiler is None:
            if self._loading is None:
                self._loading = asyncio.ensure_future(asyncio.to_thread(load_vocabulary, config.tokenizer_path))
            try:
                vocabulary = await asyncio.shield(self._loading)
            except ConfigError as fault:
                raise InvalidRequest(f"this model cannot be constrained: {fault.message}", param=spec.kind) from fault
            if self._compiler is None:
                self._compiler = Compiler(
                    vocabulary, backend=config.grammar_backend, timeout_s=config.grammar_timeout_s,
                    memory_bytes=config.grammar_memory_bytes, cache_bytes=config.grammar_cache_bytes,
                    workers=config.grammar_workers, max_waiting=config.max_waiting_grammars,
                )  # fmt: skip
        return await self._compiler.compile(spec)

    async def close(self) -> None:
        """End the processes that compile."""
        if self._compiler is not None:
            await self._compiler.close()
