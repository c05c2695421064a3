"""The background event loop of synchronous programs, and ways to it from threads and from other loops."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop that runs in a daemon thread; started at the first use, one per process."""
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            started = threading.Event()
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(_loop, started), name="rhizome-lang", daemon=True).start()
            started.wait()
            atexit.register(_stop, _loop)
        return _loop


def _forget() -> None:
    """In the child of a fork, which has none of its parent's threads: the next program starts a loop of its own."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None
    atexit.unregister(_stop)


os.register_at_fork(after_in_child=_forget)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    """At exit: connections end in order."""
    with contextlib.suppress(TimeoutError, RuntimeError):
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(timeout=2.0)


def _run(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    loop.run_forever()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: Any) -> None:
    """Call a function on the loop: now when this is its thread, else soon."""
    if running_loop() is loop:
        call(*args)
    else:
        loop.call_soon_threadsafe(call, *args)


def wait_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that runs on `loop`, for a thread.

    Raises:
        RuntimeError: this thread is the loop's own, which would wait for itself.
    """
    if running_loop() is loop:
        work.close()
        raise RuntimeError("a blocking read on the event loop itself: use await in an async program")
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C in this thread; without effect when the work itself raised
        raise


async def await_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that runs on `loop`, for a coroutine on any loop."""
    if running_loop() is loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


class Signal:
    """Something changed: `wait` returns after the next `fire`. Belongs to one loop."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future


class PerLoop(Generic[T]):
    """A resource of each event loop: made at its first use, closed when the loop ends (`asyncio.run` sees to it).

    It is also closed when nobody holds this object any more; so what `make` yields must not refer to its owner.
    """

    def __init__(self, make: Callable[[], AsyncGenerator[T, None]]) -> None:
        """Args:
        make: an async generator function that yields the resource once and closes it afterwards.
        """
        self._make = make
        self._open: dict[asyncio.AbstractEventLoop, tuple[AsyncGenerator[T, None], T, weakref.finalize[Any, Any]]] = {}
        self._making: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

    async def get(self) -> T:
        """The running loop's resource."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            for other in [known for known in self._open if known.is_closed()]:
                self._open.pop(other)[2].detach()
            async with self._making.setdefault(loop, asyncio.Lock()):
                if loop not in self._open:
                    keeper = self._make()
                    resource = await anext(keeper)
                    dropped = weakref.finalize(self, _close_soon, loop, keeper)
                    dropped.atexit = False  # the loop's own end closes it
                    self._open[loop] = keeper, resource, dropped
        return self._open[loop][1]

    async def close(self) -> None:
        """Close the running loop's resource."""
        entry = self._open.pop(asyncio.get_running_loop(), None)
        if entry is not None:
            entry[2].detach()
            await entry[0].aclose()


def _close_soon(loop: asyncio.AbstractEventLoop, keeper: AsyncGenerator[Any, None]) -> None:
    if loop.is_running():
        loop.call_soon_threadsafe(lambda: loop.create_task(_close(keeper)))


async def _close(keeper: AsyncGenerator[Any, None]) -> None:
    await keeper.aclose()
