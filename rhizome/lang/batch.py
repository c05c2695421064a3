"""`run_batch`: one program, many arguments, a bounded number at a time."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rhizome.lang.backends.base import Backend
from rhizome.lang.errors import BackendError, LanguageError
from rhizome.lang.executor import Executor
from rhizome.lang.loops import background_loop, post, wait_on
from rhizome.lang.run import ProgramRun
from rhizome.lang.sampling import SamplingParams
from rhizome.lang.state import AsyncProgramState, ProgramState

if TYPE_CHECKING:
    from rhizome.lang.program import Function

MIN_THREADS = 96


class BatchCall:
    """One call of `run_batch`. Its runs are cancelled when the caller stops early, Ctrl-C included."""

    def __init__(
        self,
        program: Function,
        arguments: list[dict[str, Any]],
        backend: Backend,
        params: SamplingParams,
        record: Any,
        num_threads: str | int,
        progress_bar: bool,
    ) -> None:
        if num_threads == "auto":
            num_threads = max(MIN_THREADS, (os.cpu_count() or 1) * 16)
        if not isinstance(num_threads, int) or num_threads < 1:
            raise LanguageError(f"num_threads={num_threads!r}: use a positive number or 'auto'")
        self._program, self._arguments, self._backend = program, arguments, backend
        self._params, self._record = params, record
        self._width = max(1, min(num_threads, len(arguments)))
        self._bar = _progress_bar(len(arguments)) if progress_bar else None
        self._loop = background_loop()
        self._active: set[ProgramRun] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def states(self) -> Iterator[ProgramState]:
        """States in order, each as soon as it and all before it are there.

        Raises:
            What the first failing function raised, after all others have finished.
        """
        if len(self._arguments) > 1:
            with suppress(BackendError):  # those who need the prefix will tell
                self._program.send_prefix(self._backend)
        fault: BaseException | None = None
        waiting: deque[Future[ProgramState]] = deque()
        rest = iter(self._arguments)
        with ThreadPoolExecutor(self._width, f"rhizome-{self._program.func.__name__}") as pool:
            try:
                # Twice the width is enough to keep all threads busy while results are taken in order.
                for arguments in rest:
                    waiting.append(pool.submit(self._one, arguments))
                    if len(waiting) >= 2 * self._width:
                        break
                while waiting:
                    done = waiting.popleft()
                    raised = done.exception()
                    for arguments in rest:
                        waiting.append(pool.submit(self._one, arguments))
                        break
                    if raised is None and fault is None:
                        yield done.result()
                    fault = fault or raised
            except BaseException:
                self._stop(pool)
                raise
            finally:
                if self._bar is not None:
                    self._bar.close()
        if fault is not None:
            raise fault

    def _one(self, arguments: dict[str, Any]) -> ProgramState:
        program = self._program
        run = wait_on(self._loop, program.start(self._loop, self._backend, self._params, False, self._record))
        with self._lock:
            self._active.add(run)
            if self._stopped:
                post(self._loop, run.cancel)
        executor = Executor(run)
        state = ProgramState(executor)
        try:
            if program.is_async:
                wait_on(self._loop, program.run_async(run, AsyncProgramState(executor), arguments))
            else:
                program.run_sync(run, state, arguments)
        finally:
            with self._lock:
                self._active.discard(run)
            if self._bar is not None:
                self._bar.update()
        return state

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        with self._lock:
            self._stopped = True
            active = list(self._active)
        for run in active:
            post(self._loop, run.cancel)
        pool.shutdown(wait=False, cancel_futures=True)


def _progress_bar(total: int) -> Any:
    try:
        import tqdm
    except ImportError as fault:
        raise LanguageError("progress_bar needs tqdm: pip install tqdm") from fault
    return tqdm.tqdm(total=total)
