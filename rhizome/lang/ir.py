"""Expressions: what a program appends to a state. Immutable; one expression may be appended to many states.

Names follow SGLang's, without its prefix. `flatten` gives the leaves in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Union

from rhizome.lang.choices import ChoicesSamplingMethod
from rhizome.lang.errors import LanguageError
from rhizome.lang.sampling import SamplingParams
from rhizome.lang.source import Line, here

if TYPE_CHECKING:
    from rhizome.lang.executor import Executor
    from rhizome.lang.slots import Slot

Appendable = Union[str, "Expr"]


class Expr:
    """Base of all expressions: they are joined with +."""

    def __add__(self, other: Appendable) -> ExprList:
        return ExprList([*flatten(self), *flatten(other)])

    def __radd__(self, other: Appendable) -> ExprList:
        return ExprList([*flatten(other), *flatten(self)])


@dataclass(eq=False)
class ExprList(Expr):
    """A sequence of leaves."""

    expr_list: list[Expr]


@dataclass(eq=False)
class ConstantText(Expr):
    """Text as it is."""

    value: str


@dataclass(eq=False)
class Gen(Expr):
    """A generation into variable `name`. `reasoning` names the format of thoughts to be split off."""

    name: str | None
    params: SamplingParams
    reasoning: str | None = None
    line: Line | None = field(default_factory=here)


@dataclass(eq=False)
class Select(Expr):
    """The most likely of some strings, into variable `name`."""

    name: str | None
    choices: list[str]
    temperature: float
    choices_method: ChoicesSamplingMethod
    line: Line | None = field(default_factory=here)


@dataclass(eq=False)
class ImageExpr(Expr):
    """An image: path, URL, bytes, or an object with PIL's `save`."""

    source: Any
    line: Line | None = field(default_factory=here)


@dataclass(eq=False)
class VideoExpr(Expr):
    """`num_frames` frames of a video, evenly spread."""

    path: str
    num_frames: int
    line: Line | None = field(default_factory=here)


@dataclass(eq=False)
class RoleBegin(Expr):
    """Opens a turn of the conversation."""

    role: str


@dataclass(eq=False)
class RoleEnd(Expr):
    """Closes it."""

    role: str


@dataclass(eq=False)
class VarScopeBegin(Expr):
    """From here on the text belongs to variable `name`, too."""

    name: str


@dataclass(eq=False)
class VarScopeEnd(Expr):
    """Up to here."""

    name: str
    line: Line | None = field(default_factory=here)


@dataclass(eq=False)
class Variable(Expr):
    """The value of a variable, of this or of another state, appended when it is known.

    In an async program `s["name"]` is one of these: append it, or `await` it. It is no string: what would need its
    text now raises instead of going on with something else.
    """

    name: str
    slot: Slot

    def __await__(self) -> Any:
        return self.slot.read_async().__await__()

    def _not_yet(self, *_: Any) -> NoReturn:
        raise TypeError(f"variable {self.name!r} is not known yet: await it before using its text")

    __bool__ = __str__ = __format__ = __len__ = __iter__ = __getitem__ = __contains__ = _not_yet
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = _not_yet
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Variable({self.name!r})"


@dataclass(eq=False)
class Fork(Expr):
    """Releases children that start with a copy of this state."""

    children: list[Executor]


@dataclass(eq=False)
class ConcatenateAndAppend(Expr):
    """The text that each of these states gained since its fork."""

    states: list[Executor]


@dataclass(eq=False)
class Flush(Expr):
    """A reader waits: what is held back for speculation is computed now."""


@dataclass(eq=False)
class Argument(Expr):
    """A placeholder for an argument or a variable while a program is traced.

    What depends on its value ends the trace. Where `shown`, its text is its name in braces instead.
    """

    name: str
    shown: bool = False

    def _unknown(self, *_: Any) -> NoReturn:
        raise StopTracing(self.name)

    def __str__(self) -> str:
        return f"{{{self.name}}}" if self.shown else self._unknown()

    def __format__(self, _: str) -> str:
        return str(self)

    __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __int__ = __float__ = __index__ = _unknown
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __sub__ = __mul__ = __truediv__ = __call__ = _unknown
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> NoReturn:
        raise StopTracing(self.name)

    def __repr__(self) -> str:
        return f"Argument({self.name!r})"


class StopTracing(LanguageError):
    """The trace cannot go on: it depends on something that only a run knows."""


def flatten(expr: Appendable) -> Iterator[Expr]:
    """The leaves in order.

    Raises:
        LanguageError: `expr` is neither text nor an expression.
    """
    if isinstance(expr, ExprList):
        for part in expr.expr_list:
            yield from flatten(part)
    elif isinstance(expr, Expr):
        yield expr
    elif isinstance(expr, str):
        yield ConstantText(expr)
    else:
        raise LanguageError(f"cannot append {type(expr).__name__} {expr!r:.50}: append text, gen(...) or the like")


def reasoning_split(exprs: Sequence[Appendable], model_type: str) -> ExprList:
    """The same expressions with every `Gen` separating its thoughts."""
    leaves = [leaf for expr in exprs for leaf in flatten(expr)]
    return ExprList(
        [Gen(leaf.name, leaf.params, model_type, leaf.line) if isinstance(leaf, Gen) else leaf for leaf in leaves]
    )
