"""What only the source text tells: docstrings of fields, annotations as written, marks in docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """One field of a dataclass as its source shows it."""

    name: str
    type: str
    default: str
    """Source of the default; empty when the field is required."""
    doc: str


def field_docs(cls: type) -> list[FieldDoc]:
    """Fields of a dataclass in order, each with the string literal that follows it."""
    tree = ast.parse(inspect.getsource(cls))
    body = tree.body[0].body  # type: ignore[attr-defined]
    out = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = _default(node.value)
            out.append(FieldDoc(node.target.id, ast.unparse(node.annotation), default, one_line(_literal(after))))
    return out


def one_line(text: str) -> str:
    """Text with its line breaks and indentation folded into single spaces."""
    return re.sub(r"\s+", " ", text).strip()


def summary(doc: str | None) -> str:
    """First paragraph of a docstring, on one line."""
    return one_line(inspect.cleandoc(doc or "").split("\n\n")[0])


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring and where it stands. `owner` is empty for a module."""

    path: str
    owner: str
    text: str


def docstrings(*folders: str) -> Iterator[Docstring]:
    """Every docstring of the Python files below these folders, in order of path and line."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from _docstrings(ast.parse(path.read_text()), path.relative_to(ROOT).as_posix(), "")


def _docstrings(node: ast.AST, path: str, owner: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield Docstring(path, owner, text)
        for child in node.body:
            name = getattr(child, "name", "")
            yield from _docstrings(child, path, f"{owner}.{name}" if owner else name)


def _literal(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def _default(node: ast.expr | None) -> str:
    if node is None:
        return ""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "field":
        factory = next((k.value for k in node.keywords if k.arg == "default_factory"), None)
        if factory is not None:
            made = ast.unparse(factory)
            return {"list": "[]", "dict": "{}"}.get(made, f"{made}()")
        default = next((k.value for k in node.keywords if k.arg == "default"), None)
        return ast.unparse(default) if default is not None else ""
    return ast.unparse(node)
