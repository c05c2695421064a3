"""What must hold for every kernel: no batch selects another compilation, and none reads what is still being written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.worker import kernels
from services.worker.kernels import overlap
from services.worker.kernels.device import INDEX_POINTERS

FIXED = {"num_heads"}
"""Given by the model."""
TOUCHING = tuple(f"{language}.{what}" for language in ("tl", "gl") for what in ("load", "store", "atomic"))
TOUCHING += ("_words(", "_ask(")
"""What calls to load and store begin with."""
CONSTANT = {"codes", "table", "words_at", "first_at"}
"""Weights, and pointers into them: no kernel writes them."""
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


@pytest.mark.parametrize("kernel", list(launched()), ids=lambda node: node.name)
def test_a_kernel_that_may_begin_early_waits_before_it_touches_what_others_write(kernel: ast.FunctionDef) -> None:
    """A second's pause is one thing; here a token would be wrong, now and then."""
    if "OVERLAP" not in [a.arg for a in kernel.args.args]:
        return
    waits = [i for i, line in enumerate(kernel.body) if ast.unparse(line) == "wait_for_the_one_before(OVERLAP)"]
    assert len(waits) == 1  # in every program, so not inside a branch
    for line in kernel.body[: waits[0]]:
        for node in ast.walk(line):
            assert not isinstance(node, ast.Return)
            if isinstance(node, ast.Call) and ast.unparse(node).startswith(TOUCHING):
                names = {name.id for name in ast.walk(node.args[0]) if isinstance(name, ast.Name)}
                assert names & CONSTANT
                assert names <= CONSTANT | {"ROWS"}


def test_a_launch_may_begin_early_only_where_its_kernel_waits() -> None:
    waiting = {kernel.name for kernel in launched() if "OVERLAP" in [a.arg for a in kernel.args.args]}
    assert waiting
    launches = [
        node
        for path in sorted(FOLDER.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    early = {
        ast.unparse(node.func.value)  # type: ignore[attr-defined]
        for node in launches
        if any(word.arg == "launch_pdl" or "overlap" in ast.unparse(word.value) for word in node.keywords)
    }
    assert early == waiting


def _is_integer(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) in ("tl.int32", "tl.int64", "gl.int32")


def test_launches_begin_early_once_a_model_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(overlap, "_able", lambda _: True)
    monkeypatch.setattr(overlap, "_early", False)
    assert overlap.overlap(device) == {"OVERLAP": False, "launch_pdl": False}
    overlap.launch_early()
    assert overlap.overlap(device) == {"OVERLAP": True, "launch_pdl": True}
    monkeypatch.setattr(overlap, "_able", lambda _: False)
    assert overlap.overlap(device) == {"OVERLAP": False, "launch_pdl": False}
