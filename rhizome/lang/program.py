"""`@function`: a Python function whose first argument is a program state, and the ways to run it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

from rhizome.lang import batch, tracer
from rhizome.lang.backends.base import Backend
from rhizome.lang.conversation import Prompt
from rhizome.lang.defaults import as_backend, default_record
from rhizome.lang.errors import BackendError, LanguageError
from rhizome.lang.executor import MIN_HINT_CHARS, Executor
from rhizome.lang.loops import background_loop, post, wait_on
from rhizome.lang.recording import RunRecord, open_recorder
from rhizome.lang.run import ProgramRun
from rhizome.lang.sampling import SamplingParams
from rhizome.lang.state import AsyncProgramState, ProgramState

MAX_FUNCTION_THREADS = 128
"""Synchronous functions that `arun` has in threads at a time."""
_RUN_KEYWORDS = ("self", "stream", "backend", "record")
_pool: ThreadPoolExecutor | None = None


class Function:
    """A program. Immutable; `bind` gives another one."""

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: dict[str, Any] | None = None,
    ) -> None:
        names = list(inspect.signature(func).parameters)
        if not names or names[0] != "s":
            raise LanguageError(f"{func.__name__}: the first argument of a program is s, its state")
        for name in names[1:]:
            if name in _RUN_KEYWORDS:
                raise LanguageError(f"{func.__name__}: {name}= is a keyword of run: rename the argument")
        if num_api_spec_tokens is not None and num_api_spec_tokens < 1:
            raise LanguageError(f"num_api_spec_tokens={num_api_spec_tokens}: use a positive number")
        functools.update_wrapper(self, func)
        self.func, self.num_api_spec_tokens = func, num_api_spec_tokens
        self.arg_names = names[1:]
        self.bind_arguments = bind_arguments or {}
        self.is_async = inspect.iscoroutinefunction(func)

    def bind(self, **arguments: Any) -> Function:
        """The same program with some arguments given; their values count as constant for prefix hints.

        A call that gives such an argument wins.

        Raises:
            LanguageError: the program has no such argument.
        """
        self._check_names(arguments)
        return Function(self.func, self.num_api_spec_tokens, {**self.bind_arguments, **arguments})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it: a state, or for an `async def` program a coroutine that gives one."""
        return self.arun(*args, **kwargs) if self.is_async else self.run(*args, **kwargs)

    def run(
        self, *args: Any, stream: bool = False, backend: Any = None, record: Any = None, **kwargs: Any
    ) -> ProgramState:
        """Run it in this thread and return its state, complete; with `stream` in another thread, and at once.

        Args:
            stream: read the text with `state.text_iter()` while it grows.
            backend: where to generate; the default backend otherwise.
            record: a trace file (path or `Recorder`).
            args, kwargs: the program's arguments, and sampling parameters for all its generations, by SGLang's
                names (`max_new_tokens`, `temperature`, ...).

        Raises:
            Whatever the function raises. What a generation raises is raised where its variable is read.
        """
        tracer.stop_tracing_at(self.func.__name__)
        arguments, params = self._split(args, kwargs)
        loop = background_loop()
        run = wait_on(loop, self.start(loop, as_backend(backend), params, stream, record))
        if self.is_async:
            return self._run_async_here(run, arguments, stream)
        state = ProgramState(Executor(run))
        if not stream:
            self.run_sync(run, state, arguments)
            return state
        target = functools.partial(self._run_quietly, run, state, arguments)
        threading.Thread(target=_in_context(target), name=f"rhizome-{self.func.__name__}", daemon=True).start()
        return state

    async def arun(
        self, *args: Any, stream: bool = False, backend: Any = None, record: Any = None, **kwargs: Any
    ) -> Any:
        """The same on the running event loop. A synchronous function runs in one of a bounded number of threads."""
        tracer.stop_tracing_at(self.func.__name__)
        arguments, params = self._split(args, kwargs)
        loop = asyncio.get_running_loop()
        run = await self.start(loop, as_backend(backend), params, stream, record)
        executor = Executor(run)
        state = AsyncProgramState(executor)
        work = self.run_async(run, state, arguments)
        if stream:
            run.in_background(work)
        else:
            await work
        return state

    def run_batch(
        self,
        batch_kwargs: Sequence[Any],
        *,
        backend: Any = None,
        num_threads: str | int = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        record: Any = None,
        **params: Any,
    ) -> list[ProgramState] | Iterator[ProgramState]:
        """Run it for each dict (or list or tuple) of arguments, many at a time; states in the order of the arguments.

        The constant prefix, found by tracing, is computed first. With `generator_style` states come as they are
        ready, still in order. An exception of a function is raised after the others have finished.
        """
        tracer.stop_tracing_at(self.func.__name__)
        call = batch.BatchCall(
            self, self._batch_arguments(batch_kwargs), as_backend(backend), self._params(params), record,
            num_threads, progress_bar,
        )  # fmt: skip
        return call.states() if generator_style else list(call.states())

    async def arun_batch(
        self, batch_kwargs: Sequence[Any], *, backend: Any = None, concurrency: int | None = None, record: Any = None,
        **params: Any,
    ) -> list[AsyncProgramState]:  # fmt: skip
        """The same on the running event loop, all at once or `concurrency` at a time."""
        tracer.stop_tracing_at(self.func.__name__)
        arguments = self._batch_arguments(batch_kwargs)
        chosen, sampling = as_backend(backend), self._params(params)
        if len(arguments) > 1 and chosen.prefix_hints:
            with contextlib.suppress(BackendError):  # those who need the prefix will tell
                await self._send(chosen, tracer.constant_prefix(self, await chosen.chat_template()))
        gate = asyncio.Semaphore(concurrency or max(len(arguments), 1))

        async def one(args: dict[str, Any]) -> AsyncProgramState:
            async with gate:
                run = await self.start(asyncio.get_running_loop(), chosen, sampling, False, record)
                state = AsyncProgramState(Executor(run))
                await self.run_async(run, state, args)
                return state

        results = await asyncio.gather(*(one(a) for a in arguments), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [r for r in results if not isinstance(r, BaseException)]

    def trace(self, *, backend: Any = None, **kwargs: Any) -> tracer.TracerState:
        """The program's nodes, without running a model; arguments that are not given are placeholders."""
        self._check_names(kwargs)
        return tracer.trace_program(self, _template(backend), kwargs)

    def cache(self, backend: Any = None) -> int:
        """Compute the constant prefix on the server; its length in characters."""
        return self.send_prefix(as_backend(backend))

    def send_prefix(self, backend: Backend) -> int:
        """Trace in this thread and compute the constant prefix; its length in characters, 0 when it was not sent.

        Raises:
            BackendError: the server refused it or cannot be reached.
        """
        if not backend.prefix_hints:
            return 0
        loop = background_loop()
        template = wait_on(loop, backend.chat_template())
        return wait_on(loop, self._send(backend, tracer.constant_prefix(self, template)))

    @staticmethod
    async def _send(backend: Backend, prefix: str) -> int:
        """Compute a prefix, when it is worth it; its length in characters or 0."""
        if len(prefix) < MIN_HINT_CHARS:
            return 0
        await backend.cache_prefix(Prompt(prefix))
        return len(prefix)

    # used by batch.py, too
    async def start(
        self, loop: asyncio.AbstractEventLoop, backend: Backend, params: SamplingParams, stream: bool, record: Any
    ) -> ProgramRun:
        """A run, ready for its first state."""
        recorder = open_recorder(default_record() if record is None else record)
        log = RunRecord(recorder)
        run = ProgramRun(
            loop, backend, await backend.chat_template(), params,
            stream=stream, spec_tokens=self.num_api_spec_tokens, record=log,
        )  # fmt: skip
        log.event("program", name=self.func.__name__, backend=type(backend).__name__)
        return run

    def run_sync(self, run: ProgramRun, state: ProgramState, arguments: dict[str, Any]) -> None:
        """Call a synchronous function in this thread and wait for all that it appended."""
        fault: BaseException | None = None
        try:
            with run.inside():
                state.ret_value = self.func(state, **arguments)
            wait_on(run.loop, run.settle())
        except BaseException as raised:
            fault = raised
            post(run.loop, run.cancel, raised)
            raise
        finally:
            wait_on(run.loop, _end(run, fault))

    async def run_async(self, run: ProgramRun, state: AsyncProgramState, arguments: dict[str, Any]) -> None:
        """Call the function on this loop (a synchronous one in a thread) and wait for all that it appended."""
        fault: BaseException | None = None
        try:
            with run.inside():
                if self.is_async:
                    state.ret_value = await self.func(state, **arguments)
                else:
                    call = functools.partial(self.func, ProgramState(state._executor), **arguments)
                    state.ret_value = await run.loop.run_in_executor(_threads(), _in_context(call))
            await run.settle()
        except BaseException as raised:
            fault = raised
            run.cancel(raised)
            raise
        finally:
            await _end(run, fault)

    def _run_async_here(self, run: ProgramRun, arguments: dict[str, Any], stream: bool) -> ProgramState:
        """An `async def` program for a thread that waits."""
        executor = Executor(run)
        work = self.run_async(run, AsyncProgramState(executor), arguments)
        state = ProgramState(executor)
        if stream:
            post(run.loop, run.in_background, work)
        else:
            wait_on(run.loop, work)
        return state

    def _run_quietly(self, run: ProgramRun, state: ProgramState, arguments: dict[str, Any]) -> None:
        """In a thread of its own: what the function raises is told to the readers of the state."""
        with contextlib.suppress(BaseException):
            self.run_sync(run, state, arguments)

    def _split(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[dict[str, Any], SamplingParams]:
        """The program's own arguments, and sampling parameters."""
        if len(args) > len(self.arg_names):
            raise LanguageError(f"{self.func.__name__} takes {len(self.arg_names)} arguments, got {len(args)}")
        own = dict(zip(self.arg_names, args, strict=False))
        for name in kwargs:
            if name in own:
                raise LanguageError(f"{self.func.__name__} got multiple values for argument {name!r}")
        own |= {k: v for k, v in kwargs.items() if k in self.arg_names}
        params = self._params({k: v for k, v in kwargs.items() if k not in self.arg_names})
        return {**self.bind_arguments, **own}, params

    def _params(self, given: dict[str, Any]) -> SamplingParams:
        unknown = [name for name in given if name not in SamplingParams.__dataclass_fields__]
        if unknown:
            raise LanguageError(
                f"{self.func.__name__} has no argument {unknown[0]!r}, and there is no such sampling parameter"
            )
        return SamplingParams(**given)

    def _batch_arguments(self, batch_kwargs: Sequence[Any]) -> list[dict[str, Any]]:
        out = []
        for i, item in enumerate(batch_kwargs):
            if not isinstance(item, dict | list | tuple):
                raise LanguageError(f"batch entry {i} is {item!r:.50}: give a dict, a list or a tuple of arguments")
            if not isinstance(item, dict):
                if len(item) > len(self.arg_names):
                    raise LanguageError(f"batch entry {i} has {len(item)} values for {len(self.arg_names)} arguments")
                item = dict(zip(self.arg_names, item, strict=False))
            self._check_names(item)
            out.append({**self.bind_arguments, **item})
        return out

    def _check_names(self, arguments: dict[str, Any]) -> None:
        for name in arguments:
            if name not in self.arg_names:
                raise LanguageError(f"{self.func.__name__} has no argument {name!r}")


@overload
def function(func: Callable[..., Any], num_api_spec_tokens: int | None = None) -> Function: ...
@overload
def function(*, num_api_spec_tokens: int | None = None) -> Callable[[Callable[..., Any]], Function]: ...
def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a function `f(s, ...)`, plain or `async def`.

    Args:
        num_api_spec_tokens: run ahead of black-box APIs: ask for at least so many tokens at a time and keep what the
            program will need next (see docs/language.md).
    """
    if func is not None:
        return Function(func, num_api_spec_tokens)
    return lambda f: Function(f, num_api_spec_tokens)


async def _end(run: ProgramRun, fault: BaseException | None) -> None:
    """Wait for what a cancelled run still has, and close it."""
    if run.is_cancelled:
        await run.settle()
    if not run.done:
        run.finish(fault)


def _template(backend: Any) -> Any:
    return wait_on(background_loop(), as_backend(backend).chat_template())


def _forget_threads() -> None:
    """In the child of a fork, which has none of them."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_threads)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(MAX_FUNCTION_THREADS, "rhizome-function")
    return _pool


def _in_context(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with this thread's context variables."""
    return functools.partial(contextvars.copy_context().run, call)
