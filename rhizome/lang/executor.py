"""One program state: a queue of operations, worked off in order on the run's event loop.

The program's thread (or task) appends and goes on; each executor works alone, so branches of a fork run in parallel. An
operation that fails makes every later one of this state fail with the same error. Texts and roles need no task: they
are done in place. `generation.py` does what needs the backend.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rhizome.lang import generation, ir
from rhizome.lang.conversation import Conversation
from rhizome.lang.errors import BackendError, LanguageError, ProgramCancelled, ProgramError, Unsupported
from rhizome.lang.loops import Signal, post
from rhizome.lang.media import Media, load_image, load_video
from rhizome.lang.run import ProgramRun
from rhizome.lang.slots import Slot
from rhizome.lang.source import Line, here
from rhizome.lang.speculation import Guessing
from rhizome.lang.turn_pattern import TurnGen, TurnPattern

MIN_HINT_CHARS = 64
"""A prefix shorter than this is not worth a call ahead."""


@dataclass(slots=True)
class Op:
    """A leaf of an expression in a queue, with the variables that it decides."""

    expr: ir.Expr
    slot: Slot | None = None
    thoughts: Slot | None = None
    line: Line | None = None

    def describe(self) -> str:
        if isinstance(self.expr, ir.Gen | ir.Select):
            return f"{type(self.expr).__name__.lower()}({self.expr.name!r})"
        if isinstance(self.expr, ir.RoleBegin | ir.RoleEnd):
            return f"the {self.expr.role} turn"
        return {"ImageExpr": "image", "VideoExpr": "video"}.get(type(self.expr).__name__, "appending")


class Executor:
    """See the module. `slots` is written by the program, everything else on the loop."""

    def __init__(self, run: ProgramRun, parent: Executor | None = None, branch: tuple[int, ...] = ()) -> None:
        self.run, self.branch = run, branch
        self.convo = Conversation(run.template)
        self.slots: dict[str, Slot] = dict(parent.slots) if parent else {}
        self.error: ProgramError | None = None
        self.closed = False
        self.changed = Signal()
        """The text grew, a variable was declared, or the state ended."""
        self.fork_pos = 0
        self.committed = 0
        """Characters that the server has computed already."""
        self.id = run.record.next_state()
        self.guessing: Guessing | None = None
        self.turn: TurnPattern | None = None
        if run.spec_tokens is not None and run.backend.can_prefill:
            self.guessing = Guessing(run.spec_tokens, run.report)
        self._scopes: dict[str, int] = {}
        self._queue: deque[Op] = deque()
        self._current: Op | None = None
        self._task: asyncio.Task[None] | None = None
        self._held = parent is not None
        self._idle = Signal()
        run.executors.append(self)
        run.record.event("state", state=self.id, parent=parent.id if parent else None, branch=list(branch))

    # called by the program
    def submit(self, expr: ir.Appendable) -> None:
        """Append an expression; returns at once.

        Raises:
            LanguageError: it is no expression, or the state was joined.
        """
        if self.closed:
            raise LanguageError("this branch was joined: append to the state that it was forked from")
        ops = [self._op(leaf) for leaf in ir.flatten(expr)]
        post(self.run.loop, self._enqueue, ops)

    def fork(self, size: int) -> list[Executor]:
        """`size` executors that start with a copy of this one, as it is when the queue gets here."""
        if size < 1:
            raise LanguageError(f"fork({size}): use a positive number")
        children = [Executor(self.run, self, (*self.branch, i)) for i in range(size)]
        self.submit(ir.Fork(children))
        return children

    def gather(self, children: Sequence[Executor]) -> None:
        """Variables that the children have and this one has not, as lists in the children's order."""
        names = {name: None for child in children for name in child.slots if name not in self.slots}
        for name in names:
            sources = [child.slots[name] for child in children if name in child.slots]
            slot = self.slots[name] = Slot(name, sources[0].line, self.run.loop)
            post(self.run.loop, self._spawn_gather, slot, sources)
        for child in children:
            child.closed = True

    def _op(self, leaf: ir.Expr) -> Op:
        loop = self.run.loop
        if isinstance(leaf, ir.Gen | ir.Select | ir.VarScopeEnd):
            slot = Slot(leaf.name or "", leaf.line, loop)
            thoughts = None
            if isinstance(leaf, ir.Gen) and leaf.reasoning and leaf.name is not None:
                thoughts = Slot(f"{leaf.name}_reasoning_content", leaf.line, loop)
                self.slots[thoughts.name] = thoughts
            if leaf.name is not None:
                self.slots[leaf.name] = slot
            return Op(leaf, slot, thoughts, leaf.line)
        return Op(leaf, line=None if isinstance(leaf, ir.ConstantText | ir.Flush) else here())

    # on the loop
    def _spawn_gather(self, slot: Slot, sources: list[Slot]) -> None:
        self.changed.fire()
        task = self.run.spawn(_gather(slot, sources))
        task.add_done_callback(lambda _: None if slot.done else slot.fail(self._cancelled(slot)))

    def _cancelled(self, slot: Slot) -> ProgramError:
        return ProgramError(f"join of {slot.name!r}", slot.line, self.branch, ProgramCancelled())

    def flush(self) -> None:
        """Compute what is held back for speculation."""
        if self.run.spec_tokens is not None and not self.run.backend.can_prefill:
            self._enqueue([Op(ir.Flush())])

    def abort(self, fault: BaseException) -> None:
        """Everything that has not ended fails."""
        pending = [*([self._current] if self._current else []), *self._queue]
        self._queue.clear()
        self._held = False
        self._fail(Op(ir.Flush()) if not pending else pending[0], fault)
        for op in pending:
            self._give_up(op)
        self._idle.fire()

    @property
    def is_drained(self) -> bool:
        """The queue is empty and nothing runs."""
        return not (self._task is not None or self._queue or self._held)

    async def drained(self) -> None:
        """Return when all that was appended is done."""
        while not self.is_drained:
            await self._idle.wait()

    def _enqueue(self, ops: list[Op]) -> None:
        self._queue.extend(ops)
        self._step()
        self.changed.fire()

    def _step(self) -> None:
        """Do what can be done in place; start a task for the rest."""
        if self._held or self._task is not None:
            return
        while self._queue:
            op = self._queue[0]
            if self.error is None:
                done = False
                with self._guarding(op):
                    done = self._do_now(op)
                if self.error is None and not done:
                    self._task = self.run.spawn(self._drain())
                    # Not in a `finally` of the task: one that is cancelled before it starts has none.
                    self._task.add_done_callback(self._drain_ended)
                    return
            if self.error is not None:
                self._give_up(op)
            self._queue.popleft()
        self._idle.fire()

    async def _drain(self) -> None:
        while self._queue:
            op = self._current = self._queue.popleft()
            if self.error is None:
                with self._guarding(op):
                    if not self._do_now(op):
                        await self._do(op)
            if self.error is not None:
                self._give_up(op)
            self._current = None

    def _drain_ended(self, _: asyncio.Task[None]) -> None:
        cancelled, self._task, self._current = self._current, None, None
        if cancelled is not None:
            self._give_up(cancelled)
        self._step()
        self.changed.fire()

    @contextmanager
    def _guarding(self, op: Op) -> Iterator[None]:
        """What goes wrong in an operation is the error of those who wait for this state."""
        try:
            yield
        except asyncio.CancelledError:
            self._fail(op, ProgramCancelled())
            raise
        except Exception as fault:  # whatever a backend raises: nobody may wait for ever
            self._fail(op, fault)

    def _do_now(self, op: Op) -> bool:
        """Carry out an operation that needs to wait for nothing; False for the others."""
        expr = op.expr
        if isinstance(expr, ir.ConstantText):
            self.fill(expr.value)
        elif isinstance(expr, ir.RoleBegin):
            self._begin_role(expr.role)
        elif isinstance(expr, ir.RoleEnd) and (self.turn is None or not self.turn.gens()):
            generation.close_turn(self)
            self._end_role(expr.role)
        elif isinstance(expr, ir.Gen) and self.turn is not None:
            assert op.slot is not None
            gen = TurnGen(expr, op.slot, op.thoughts, generation.resolve(self, expr))
            self.turn.terms.append(gen)
            for slot in gen.slots:
                slot.demand = self.flush
            if any(slot.wanted for slot in gen.slots):
                self._queue.append(Op(ir.Flush()))
        elif isinstance(expr, ir.VarScopeBegin | ir.VarScopeEnd) and self.turn is not None:
            raise Unsupported("var_scope inside an assistant's turn that is one speculative call")
        elif isinstance(expr, ir.VarScopeBegin):
            if expr.name in self._scopes:
                raise LanguageError(f"var_scope({expr.name!r}) inside var_scope({expr.name!r}): use another name")
            self._scopes[expr.name] = len(self.convo.text)
        elif isinstance(expr, ir.VarScopeEnd):
            assert op.slot is not None
            op.slot.resolve(self.convo.text[self._scopes.pop(expr.name) :])
        elif isinstance(expr, ir.Flush) and (self.turn is None or not self.turn.gens()):
            pass
        elif isinstance(expr, ir.Variable) and expr.slot.done:
            self.fill(_as_text(expr.slot.result()))
        else:
            return False
        return True

    async def _do(self, op: Op) -> None:
        expr = op.expr
        if self.turn is not None and self.turn.gens():
            await generation.compute_turn(self, final=isinstance(expr, ir.RoleEnd))
            if self._do_now(op):
                return
        if self.turn is not None and isinstance(expr, ir.Select | ir.ImageExpr | ir.VideoExpr):
            generation.write_texts(self)  # what follows stands behind them
        if isinstance(expr, ir.Gen):
            assert op.slot is not None
            await generation.generate(self, expr, op.slot, op.thoughts)
        elif isinstance(expr, ir.Select):
            assert op.slot is not None
            await generation.select(self, expr, op.slot)
        elif isinstance(expr, ir.Variable):
            self.fill(_as_text(await expr.slot.read_async()))
        elif isinstance(expr, ir.ImageExpr):
            self._append_image(await asyncio.to_thread(load_image, expr.source))
        elif isinstance(expr, ir.VideoExpr):
            for frame in await asyncio.to_thread(load_video, expr.path, expr.num_frames):
                self._append_image(frame)
        elif isinstance(expr, ir.Fork):
            await self._fork(expr.children)
        elif isinstance(expr, ir.ConcatenateAndAppend):
            await self._concatenate(expr.states)
        else:
            raise LanguageError(f"cannot run a {type(expr).__name__}")

    @property
    def text(self) -> str:
        """The state's text, with what waits for the end of a speculative turn."""
        waiting = [term for term in self.turn.terms if isinstance(term, str)] if self.turn else []
        return self.convo.text + "".join(waiting)

    def fill(self, text: str) -> None:
        """The program's own text."""
        if self.turn is not None:
            self.turn.add_text(text)
            return
        if self.guessing is not None:
            self.guessing.text(text)
        self.append(text, "text")

    def append(self, text: str, kind: str = "") -> None:
        """Grow the state's text; `kind` names it in the record."""
        if text:
            self.convo.append(text)
            if kind:
                self.run.record.event(kind, state=self.id, text=text, role=self.convo.role)
            self.changed.fire()

    def _append_image(self, image: Media) -> None:
        if self.guessing is not None:
            self.guessing.drop()  # the model had not seen it
        self.convo.append_image(image)
        self.changed.fire()

    def _begin_role(self, role: str) -> None:
        if self.guessing is not None:
            self.guessing.drop()
        self.convo.begin(role)
        if role == "assistant" and self.run.spec_tokens is not None and not self.run.backend.can_prefill:
            self.turn = TurnPattern()
        self.changed.fire()

    def _end_role(self, role: str) -> None:
        if self.guessing is not None and self.run.backend.is_chat_model:
            self.guessing.drop()
        before = len(self.convo.text)
        self.convo.end(role)
        if self.guessing is not None and not self.run.backend.is_chat_model:
            self.guessing.text(self.convo.text[before:])
        self.changed.fire()

    async def _fork(self, children: list[Executor]) -> None:
        if len(children) > 1:
            await self.hint()
        for child in children:
            child._release(self)

    def _release(self, parent: Executor) -> None:
        self.convo = parent.convo.copy()
        self.committed, self.error = parent.committed, parent.error
        if parent.turn is not None:
            self.turn = TurnPattern(terms=list(parent.turn.terms), begun=parent.turn.begun)
        self.fork_pos = len(self.text)
        self._held = False
        self.run.record.event("fork", state=self.id, at_chars=self.fork_pos)
        self._step()
        self.changed.fire()

    async def hint(self) -> None:
        """Have the text computed once, before several states begin with it."""
        backend, text = self.run.backend, self.convo.text
        if not backend.prefix_hints or len(text) - self.committed < MIN_HINT_CHARS:
            return
        try:
            await backend.cache_prefix(self.convo.prompt())
        except BackendError as fault:  # those who need the prefix will tell
            self.run.record.event("hint", state=self.id, error=str(fault))
            return
        self.committed = len(text)
        self.run.report.hints += 1
        self.run.record.event("hint", state=self.id, chars=len(text))

    async def _concatenate(self, states: list[Executor]) -> None:
        parts = []
        for state in states:
            state.flush()
            await state.drained()
            if state.error is not None:
                raise state.error
            parts.append(state.text[state.fork_pos :])
        self.fill("".join(parts))

    def _fail(self, op: Op, fault: BaseException) -> None:
        """The state's first error decides what its readers see."""
        if self.error is None:
            if isinstance(fault, ProgramError):
                self.error = fault
            else:
                line = op.line or (op.slot.line if op.slot else None)
                self.error = ProgramError(op.describe(), line, self.branch, fault)
            self.run.record.event("error", state=self.id, error=str(self.error))
        turn, self.turn = self.turn, None
        for gen in turn.gens() if turn else ():
            for slot in gen.slots:
                if not slot.done:
                    slot.fail(self.error)
        self.changed.fire()

    def _give_up(self, op: Op) -> None:
        """An operation that will not be carried out."""
        assert self.error is not None
        for slot in (op.slot, op.thoughts):
            if slot is not None and not slot.done:
                slot.fail(self.error)
        if isinstance(op.expr, ir.Fork):
            for child in op.expr.children:
                if child._held:
                    child._release(self)


async def _gather(slot: Slot, sources: list[Slot]) -> None:
    values, metas = [], []
    try:
        for source in sources:
            values.append(await source.wait())
            metas.append(source.meta)
    except ProgramError as fault:
        slot.fail(fault)
        return
    slot.resolve(values, {"branches": metas})


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise LanguageError(f"a {type(value).__name__} cannot be appended: make it text first")
