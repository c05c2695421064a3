"""A program without a model: its nodes, and the constant text that every run of it begins with.

The function runs with placeholders for arguments. What depends on a value that only a run knows ends the trace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

from rhizome.lang import ir
from rhizome.lang.chat_template import ChatTemplate
from rhizome.lang.conversation import Conversation

if TYPE_CHECKING:
    from rhizome.lang.program import Function

_tracing: ContextVar[bool] = ContextVar("rhizome_tracing", default=False)


def stop_tracing_at(program: str) -> None:
    """To be called before a program runs.

    Raises:
        StopTracing: a trace is under way, which runs nothing.
    """
    if _tracing.get():
        raise ir.StopTracing(program)


class TracerState:
    """Stands for a program state; collects nodes instead of running them."""

    def __init__(self, template: ChatTemplate, prefix_only: bool) -> None:
        self.nodes: list[ir.Expr] = []
        self.children: list[TracerState] = []
        self.ret_value: Any = None
        self._convo = Conversation(template)
        self._prefix_only = prefix_only
        self._constant = True

    @property
    def prefix(self) -> str:
        """The constant text from the beginning, with the template's markup."""
        return self._convo.text

    def __iadd__(self, other: ir.Appendable) -> Self:
        for leaf in ir.flatten(other):
            self.nodes.append(leaf)
            self._constant = self._constant and self._take(leaf)
            if self._prefix_only and not self._constant:
                raise ir.StopTracing("the constant prefix ends here")
        return self

    def _take(self, leaf: ir.Expr) -> bool:
        if isinstance(leaf, ir.ConstantText):
            self._convo.append(leaf.value)
        elif isinstance(leaf, ir.RoleBegin):
            self._convo.begin(leaf.role)
        elif isinstance(leaf, ir.RoleEnd):
            self._convo.end(leaf.role)
        else:
            return isinstance(leaf, ir.VarScopeBegin | ir.VarScopeEnd)
        return True

    def _role(self, role: str, expr: ir.Appendable | None) -> Any:
        if expr is None:
            return self._between(ir.RoleBegin(role), ir.RoleEnd(role))
        self += ir.ExprList([ir.RoleBegin(role), *ir.flatten(expr), ir.RoleEnd(role)])
        return ir.ExprList([])

    def system(self, expr: ir.Appendable | None = None) -> Any:
        return self._role("system", expr)

    def user(self, expr: ir.Appendable | None = None) -> Any:
        return self._role("user", expr)

    def assistant(self, expr: ir.Appendable | None = None) -> Any:
        return self._role("assistant", expr)

    @contextmanager
    def _between(self, before: ir.Expr, after: ir.Expr) -> Iterator[None]:
        self += before
        yield
        self += after

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        self += ir.VarScopeBegin(name)
        yield
        self += ir.VarScopeEnd(name)

    def fork(self, size: int = 1) -> _TracerGroup:
        if self._prefix_only:
            raise ir.StopTracing("fork")
        group = _TracerGroup(TracerState(self._convo.template, False) for _ in range(size))
        self.children += group
        return group

    def __getitem__(self, name: str) -> ir.Expr:
        """A placeholder for a variable's value: good for appending, not for deciding."""
        return ir.Argument(name, shown=not self._prefix_only)

    get_var = var = __getitem__

    def __setitem__(self, name: str, value: Any) -> None:
        raise ir.StopTracing(name)

    def __getattr__(self, name: str) -> Any:
        raise ir.StopTracing(name)

    def flatten_nodes(self) -> list[ir.Expr]:
        return list(self.nodes)

    def print_graph(self) -> str:
        """The nodes, one a line; branches indented."""
        lines = [repr(node) if not isinstance(node, ir.Gen) else f"Gen({node.name!r})" for node in self.nodes]
        for i, child in enumerate(self.children):
            lines += [f"branch {i}:", *("  " + line for line in child.print_graph().splitlines())]
        return "\n".join(lines)


class _TracerGroup(list[TracerState]):
    def __iadd__(  # type: ignore[override, misc]
        self, other: ir.Appendable | Callable[[int], ir.Appendable] | Sequence[ir.Appendable]
    ) -> Self:
        """Append to every branch, as a fork of states does."""
        for i, state in enumerate(self):
            if isinstance(other, str | ir.Expr):
                state += other
            else:
                state += other(i) if callable(other) else other[i]
        return self

    def join(self, mode: str = "gather_variable") -> None:
        """Nothing to do without values."""


def constant_prefix(program: Function, template: ChatTemplate) -> str:
    """The text that every run of the program begins with; bound arguments count as constant."""
    state = TracerState(template, prefix_only=True)
    with suppress(Exception):  # as far as it goes: a function may raise anything when it meets a placeholder
        _call(program, state, {**_placeholders(program, shown=False), **program.bind_arguments})
    return state.prefix


def trace_program(program: Function, template: ChatTemplate, arguments: Mapping[str, Any]) -> TracerState:
    """All nodes of a program.

    Raises:
        StopTracing: its control flow depends on a value; give that argument.
    """
    state = TracerState(template, prefix_only=False)
    state.ret_value = _call(
        program, state, {**_placeholders(program, shown=True), **program.bind_arguments, **arguments}
    )
    return state


def _placeholders(program: Function, *, shown: bool) -> dict[str, Any]:
    return {name: ir.Argument(name, shown) for name in program.arg_names}


def _call(program: Function, state: TracerState, arguments: dict[str, Any]) -> Any:
    before = _tracing.set(True)
    try:
        result = program.func(state, **arguments)
        if inspect.iscoroutine(result):
            try:
                result.send(None)
            except StopIteration as done:
                return done.value
            finally:
                result.close()
            raise ir.StopTracing("await")
        return result
    finally:
        _tracing.reset(before)
