"""`python -m services.scheduler.grammar.compile_process`: where grammars are compiled, because it may be killed.

Reads frames on stdin and answers each on stdout: first the vocabulary and the limits, then one frame per grammar. Runs
at low priority, under a limit on its memory and, should its parent be gone, on its processor time. Ends with its input.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any, BinaryIO

from services.scheduler.grammar import llguidance_backend, sources, xgrammar_backend
from services.scheduler.grammar.frames import read_frame, write_frame
from services.scheduler.grammar.locate import with_place
from services.scheduler.grammar.vocabulary import Vocabulary
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec

NICENESS = 10


class CompileProcess:
    """State of the process: the engines that were asked for, built at their first use."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._llguidance = llguidance_backend.Engine(vocabulary)
        self._xgrammar: xgrammar_backend.Engine | None = None

    def prepare(self, backend: str) -> None:
        """Have an engine ready, so that no compile waits for it."""
        if backend == "xgrammar" and self._xgrammar is None:
            self._xgrammar = xgrammar_backend.Engine(self._vocabulary)

    def compile(self, spec: GrammarSpec, backend: str) -> bytes:
        """What the other side builds the grammar from: llguidance's JSON or xgrammar's serialized grammar."""
        if backend == "xgrammar":
            self.prepare(backend)
            assert self._xgrammar is not None
            return self._xgrammar.compile(spec)
        source = sources.llguidance_source(spec, self._vocabulary.special_tokens)
        with with_place(spec, self._llguidance):
            self._llguidance.build(source, spec.kind)
        return source.encode()


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer frames until the input ends."""
    header, blob = read_frame(stdin)
    process = CompileProcess(Vocabulary.unpack(header, blob))
    _limit_memory(header["memory_bytes"])
    write_frame(stdout, {"ready": True}, b"")
    while True:
        try:
            header, _ = read_frame(stdin)
        except EOFError:
            return
        _limit_cpu(header["cpu_s"])
        write_frame(stdout, *_answer(process, header))


def _answer(process: CompileProcess, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    if "prepare" in header:
        process.prepare(header["prepare"])
        return {}, b""
    spec = GrammarSpec(header["kind"], header["source"], header["max_whitespace"])
    try:
        return {}, process.compile(spec, header["backend"])
    except InvalidRequest as fault:
        return {"error": fault.message}, b""
    except MemoryError:
        return {"error": f"{spec.kind}: it needs too much memory to compile"}, b""
    except RecursionError:
        return {"error": f"{spec.kind}: it is nested too deeply"}, b""


def _limit_memory(more_bytes: int) -> None:
    """Allow `more_bytes` of address space beyond what is mapped now."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more_bytes, resource.RLIM_INFINITY))


def _limit_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    os.nice(NICENESS)
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, stdout)


if __name__ == "__main__":
    main()
