"""One compile process seen from the scheduler: started when needed, killed when it takes too long, started again.

Belongs to one task of `compiler`; one request at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

from services.scheduler.grammar.frames import Frame, pack, receive_frame
from services.scheduler.grammar.vocabulary import Vocabulary
from shared.errors import InvalidRequest, Unavailable
from shared.grammar import GrammarSpec
from shared.log import Log

START_TIMEOUT_S = 60.0
"""For the process to import and read the vocabulary, on a busy machine."""
log = Log(logging.getLogger(__name__), {})


class CompileTimeout(InvalidRequest):
    """A grammar took longer than it may; its process was killed."""


class Sandbox:
    """Owns at most one child process."""

    def __init__(self, vocabulary: Vocabulary, memory_bytes: int) -> None:
        self._vocabulary = vocabulary
        self._memory_bytes = memory_bytes
        self._process: asyncio.subprocess.Process | None = None
        self._prepared: set[str] = set()

    @property
    def pid(self) -> int | None:
        """Of the child; None when there is none."""
        return None if self._process is None else self._process.pid

    async def compile(self, spec: GrammarSpec, backend: str, timeout_s: float) -> bytes:
        """What `CompileProcess.compile` returns.

        Raises:
            InvalidRequest: the grammar is wrong, or compiling it needs too much memory.
            CompileTimeout: it took longer than `timeout_s`.
            Unavailable: the process cannot be started.
        """
        request = {"kind": spec.kind, "source": spec.source, "max_whitespace": spec.max_whitespace, "backend": backend}
        for last in (False, True):
            await self._ready(backend)
            try:
                header, blob = await self._ask({**request, "cpu_s": timeout_s}, timeout_s)
            except TimeoutError:
                await self.close()
                text = f"{spec.kind}: it takes longer than {timeout_s:g} s to compile; make it smaller or less nested"
                raise CompileTimeout(text, param=spec.kind) from None
            except (asyncio.IncompleteReadError, ConnectionError):
                await self.close()
                if last:  # once may be somebody else's doing
                    text = f"{spec.kind}: compiling it needs too much memory or time"
                    raise InvalidRequest(text, param=spec.kind) from None
            except BaseException:
                await self.close()
                raise
            else:
                break
        if "error" in header:
            raise InvalidRequest(header["error"], param=spec.kind)
        return blob

    async def close(self) -> None:
        """Kill the child, if there is one, and wait until it is gone."""
        process, self._process = self._process, None
        self._prepared.clear()
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
        assert process.stdin is not None
        process.stdin.close()

    async def _ready(self, backend: str) -> None:
        try:
            if self._process is None or self._process.returncode is not None:
                await self.close()
                await self._start()
            if backend not in self._prepared:
                await self._ask({"prepare": backend, "cpu_s": START_TIMEOUT_S}, START_TIMEOUT_S)
                self._prepared.add(backend)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as fault:
            await self.close()
            log.error("the process that compiles grammars cannot be started", fault=fault)
            raise Unavailable("grammars cannot be compiled now: the process for it does not start") from fault
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.scheduler.grammar.compile_process",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**20, env=environment,
        )  # fmt: skip
        header, blob = await asyncio.to_thread(self._vocabulary.pack)
        await self._ask({**header, "memory_bytes": self._memory_bytes}, START_TIMEOUT_S, blob)

    async def _ask(self, header: dict[str, Any], timeout_s: float, blob: bytes = b"") -> Frame:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        async with asyncio.timeout(timeout_s):
            process.stdin.write(pack(header, blob))
            await process.stdin.drain()
            return await receive_frame(process.stdout)
