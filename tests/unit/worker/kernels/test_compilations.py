"""No batch may select another compilation of a kernel: a second's pause in the middle of serving."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.worker import kernels
from services.worker.kernels.device import INDEX_POINTERS

FIXED = {"num_heads"}
"""Given by the model."""
FOLDER = Path(next(iter(kernels.__path__)))


def launched() -> Iterator[ast.FunctionDef]:
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                yield node


@pytest.mark.parametrize("kernel", list(launched()), ids=lambda node: node.name)
def test_pointers_to_slices_do_not_select_a_compilation_by_their_alignment(kernel: ast.FunctionDef) -> None:
    slices = {argument.arg for argument in kernel.args.args} & set(INDEX_POINTERS)
    options = {
        keyword.arg: ast.unparse(keyword.value)
        for decorator in kernel.decorator_list
        if isinstance(decorator, ast.Call)
        for keyword in decorator.keywords
    }
    assert not slices or options.get("do_not_specialize_on_alignment") == "INDEX_POINTERS"


@pytest.mark.parametrize("kernel", list(launched()), ids=lambda node: node.name)
def test_counts_that_vary_do_not_select_a_compilation(kernel: ast.FunctionDef) -> None:
    counts = {a.arg for a in kernel.args.args if a.arg.startswith(("num_", "max_")) and _is_integer(a)}
    given = {
        ast.literal_eval(item)
        for decorator in kernel.decorator_list
        if isinstance(decorator, ast.Call)
        for keyword in decorator.keywords
        if keyword.arg == "do_not_specialize" and isinstance(keyword.value, ast.List)
        for item in keyword.value.elts
    }
    assert counts <= given | FIXED


def _is_integer(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) in ("tl.int32", "tl.int64")
