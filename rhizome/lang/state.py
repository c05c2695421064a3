"""What a program holds: a state to append to and to read from, and groups of states from `fork`.

`ProgramState` is for plain functions: a read blocks their thread. `AsyncProgramState` is for `async def` programs:
a read is awaited. Appending is the same for both and never waits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

from rhizome.lang import ir, streaming
from rhizome.lang.conversation import Message
from rhizome.lang.errors import LanguageError, UnknownVariable
from rhizome.lang.executor import Executor
from rhizome.lang.loops import await_on, post, wait_on
from rhizome.lang.slots import LateSlot, Slot
from rhizome.lang.source import here

StateT = TypeVar("StateT", bound="StateBase")


class StateBase:
    """Appending, forking and roles. One thread or task appends to a state; anyone may read."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.ret_value: Any = None

    def __iadd__(self, other: ir.Appendable) -> Self:
        self._executor.submit(other)
        return self

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a variable to a known value."""
        slot = Slot(name, here(), self._executor.run.loop)
        slot.value, slot.done = value, True
        slot.partial = value if isinstance(value, str) else ""
        self._executor.slots[name] = slot
        post(self._executor.run.loop, self._executor.changed.fire)

    set_var = __setitem__

    def __contains__(self, name: str) -> bool:
        return name in self._executor.slots

    def var(self, name: str) -> ir.Variable:
        """The variable as an expression: append it without waiting for it."""
        executor = self._executor
        if name not in executor.slots and executor.run.may_grow:
            return ir.Variable(name, LateSlot(name, here(), executor.run.loop, lambda: self._declared(name)))
        return ir.Variable(name, self._slot(name))

    def system(self, expr: ir.Appendable | None = None) -> Any:
        return self._role("system", expr)

    def user(self, expr: ir.Appendable | None = None) -> Any:
        return self._role("user", expr)

    def assistant(self, expr: ir.Appendable | None = None) -> Any:
        return self._role("assistant", expr)

    def _role(self, role: str, expr: ir.Appendable | None) -> Any:
        """With an expression: append the turn. Without: a context manager for `with s.user():`.

        Both `s.user(text)` and `s += s.user(text)` are common; so what is returned appends nothing more.
        """
        if expr is not None:
            self._executor.submit(ir.ExprList([ir.RoleBegin(role), *ir.flatten(expr), ir.RoleEnd(role)]))
            return ir.ExprList([])
        return self._between(ir.RoleBegin(role), ir.RoleEnd(role))

    @contextmanager
    def _between(self, before: ir.Expr, after: ir.Expr) -> Iterator[None]:
        self._executor.submit(before)
        yield
        self._executor.submit(after)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """All text appended in the block becomes variable `name`."""
        self._executor.submit(ir.VarScopeBegin(name))
        yield
        self._executor.submit(ir.VarScopeEnd(name))

    def cancel(self) -> None:
        """Stop the whole program; what is not computed yet raises where it is read. Returns at once."""
        post(self._executor.run.loop, self._executor.run.cancel)

    def report(self) -> dict[str, Any]:
        """Calls made and saved, tokens paid and wasted, by the whole program so far."""
        return self._executor.run.report.as_dict()

    def _forked(self, size: int) -> list[Self]:
        return [type(self)(child) for child in self._executor.fork(int(size))]

    def _slot(self, name: str) -> Slot:
        slot = self._executor.slots.get(name)
        if slot is None:
            if self._executor.run.fault is not None:
                raise self._executor.run.fault
            raise UnknownVariable(name, list(self._executor.slots))
        return slot

    async def _declared(self, name: str) -> Slot:
        """A variable; where the program runs elsewhere and may not have got there yet, waits for that."""
        while name not in self._executor.slots and self._executor.run.may_grow:
            await self._executor.changed.wait()
        return self._slot(name)

    async def _read(self, name: str) -> Any:
        return await (await self._declared(name)).wait()

    async def _synced(self) -> Executor:
        """The executor when all that was appended is done.

        Raises:
            ProgramError: it, or the program's function, failed.
        """
        executor = self._executor
        executor.flush()
        await executor.drained()
        while executor.run.may_grow:
            await executor.run.ended.wait()
        if executor.error is not None:
            raise executor.error
        if executor.run.fault is not None:
            raise executor.run.fault
        return executor

    async def _text(self) -> str:
        return (await self._synced()).text

    async def _messages(self) -> list[Message]:
        return list((await self._synced()).convo.messages)

    async def _meta(self, name: str) -> dict[str, Any] | None:
        slot = await self._declared(name)
        await slot.wait()
        return slot.meta

    async def _fault(self) -> BaseException | None:
        try:
            await self._synced()
        except LanguageError as fault:
            return fault
        return None


class ProgramState(StateBase):
    """The state of a synchronous program; reads block."""

    def __getitem__(self, name: str) -> Any:
        """A variable's value; waits for it.

        Raises:
            ProgramError: it could not be computed.
            UnknownVariable: nothing of that name was appended.
        """
        if self._executor.run.may_grow:
            return self._wait(self._read(name))
        return self._slot(name).read()

    get_var = __getitem__

    def get_meta_info(self, name: str) -> dict[str, Any] | None:
        """What the backend told about a variable's generation; waits for it."""
        return self._wait(self._meta(name))

    def text(self) -> str:
        """The whole text; waits until all that was appended is done."""
        return self._wait(self._text())

    def messages(self) -> list[Message]:
        """The closed turns in OpenAI's format; waits like `text`."""
        return self._wait(self._messages())

    def sync(self) -> None:
        """Wait until all that was appended is done."""
        self._wait(self._synced())

    def error(self) -> BaseException | None:
        """What went wrong in this state, if anything; waits like `text`."""
        return self._wait(self._fault())

    def fork(self, size: int = 1) -> ProgramStateGroup[ProgramState]:
        """`size` states that go on from here in parallel."""
        return ProgramStateGroup(self._forked(size), self)

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A continuation whose text does not come back, but whose variables do."""
        group = self.fork(1)
        yield group[0]
        group.join()

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Pieces of the whole text, or of one variable, as they come.

        The pieces of a generation need `run(stream=True)`. In the function itself they end with what was appended.
        """
        loop = self._executor.run.loop
        pieces = streaming.pieces(self, var_name)
        try:
            while (piece := wait_on(loop, streaming.following(pieces))) is not None:
                yield piece[0]
        finally:
            wait_on(loop, streaming.ended(pieces))

    def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """The same for a coroutine; with `return_meta_data` pairs of a piece and its meta information."""
        return streaming.on_any_loop(self, var_name, return_meta_data)

    def _wait(self, work: Any) -> Any:
        return wait_on(self._executor.run.loop, work)

    def __repr__(self) -> str:
        return f"ProgramState({self._executor.convo.text!r})"


class AsyncProgramState(StateBase):
    """The state of an `async def` program; reads are awaited."""

    def __getitem__(self, name: str) -> ir.Variable:
        """A variable: `await` it for its value, or append it as it is and do not wait."""
        return self.var(name)

    async def get_var(self, name: str) -> Any:
        return await self._await(self._read(name))

    async def get_meta_info(self, name: str) -> dict[str, Any] | None:
        return await self._await(self._meta(name))

    async def text(self) -> str:
        return await self._await(self._text())

    async def messages(self) -> list[Message]:
        return await self._await(self._messages())

    async def sync(self) -> None:
        await self._await(self._synced())

    async def error(self) -> BaseException | None:
        return await self._await(self._fault())

    def fork(self, size: int = 1) -> ProgramStateGroup[AsyncProgramState]:
        return ProgramStateGroup(self._forked(size), self)

    @contextmanager
    def copy(self) -> Iterator[AsyncProgramState]:
        group = self.fork(1)
        yield group[0]
        group.join()

    def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        return streaming.on_any_loop(self, var_name, return_meta_data)

    async def _await(self, work: Any) -> Any:
        return await await_on(self._executor.run.loop, work)

    def __repr__(self) -> str:
        return f"AsyncProgramState({self._executor.convo.text!r})"


class ProgramStateGroup(Generic[StateT]):
    """States from one `fork`."""

    def __init__(self, states: list[StateT], source: StateT) -> None:
        self.states, self._source = states, source

    def join(self, mode: str = "gather_variable") -> None:
        """Bring the branches together; returns at once, reads wait.

        Args:
            mode: "gather_variable": variables of the branches become lists in the state that was forked.
                "concate_and_append": their texts since the fork are appended to it, in order.

        Raises:
            LanguageError: another mode.
        """
        source, children = self._source._executor, [state._executor for state in self.states]
        if mode == "gather_variable":
            source.gather(children)
        elif mode in ("concate_and_append", "concatenate_and_append"):
            source.submit(ir.ConcatenateAndAppend(children))
            for child in children:
                child.closed = True
        else:
            raise LanguageError(f"join mode {mode!r}: use gather_variable or concate_and_append")

    def __getitem__(self, i: int) -> StateT:
        return self.states[i]

    def __setitem__(self, i: int, state: StateT) -> None:
        assert self.states[i] is state, "group[i] += ... assigns the same state"

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[StateT]:
        return iter(self.states)

    def __iadd__(self, other: ir.Appendable | Callable[[int], ir.Appendable] | Sequence[ir.Appendable]) -> Self:
        """Append to every branch: the same, what a function of its index gives, or an item of a list."""
        for i, state in enumerate(self.states):
            if isinstance(other, str | ir.Expr):
                state._executor.submit(other)
            else:
                state._executor.submit(other(i) if callable(other) else other[i])
        return self
