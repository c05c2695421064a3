"""docs/messages.md: every message class with its fields, from `shared.messages` and `shared.sampling`."""

from __future__ import annotations

import dataclasses
from types import ModuleType

from docs.generate.markdown import NOTICE, code, size, table
from docs.generate.source import FieldDoc, field_docs, one_line, summary
from shared import sampling, wire
from shared.messages import control, embedding, generation, media, step

_INTRO = """\
# Messages

The classes below are what travels. A message without arrays is one JSON object, in which fields that equal their
default are left out. A message with arrays (`I32`, `U32`, `U8`, `F32`: little-endian NumPy arrays) is a frame of a
JSON header and raw buffers; see [`shared/wire.py`](../shared/wire.py). [Subjects](subjects.md) says where each one
is used. Unknown fields and wrong types are errors that name the field.
"""
_PLANES: tuple[tuple[str, tuple[ModuleType, ...]], ...] = (
    ("Generation", (generation, sampling)),
    ("Images and videos", (media, embedding)),
    ("Steps", (step,)),
    ("Control", (control,)),
)


def render() -> str:
    """The page."""
    lines = [NOTICE, "", _INTRO]
    for title, modules in _PLANES:
        lines += [f"## {title}", "", _plane_intro(modules[0]), ""]
        for module in modules:
            for cls in _classes_of(module):
                lines += _class(cls)
    return "\n".join(lines)


def _classes_of(module: ModuleType) -> list[type]:
    found = [c for c in vars(module).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
    return [c for c in found if c.__module__ == module.__name__]


def _plane_intro(module: ModuleType) -> str:
    return "\n\n".join(one_line(paragraph) for paragraph in (module.__doc__ or "").strip().split("\n\n"))


def _class(cls: type) -> list[str]:
    limit = f" At most {size(wire.max_bytes(cls))}." if cls in wire.message_classes() else ""
    lines = [f"### {cls.__name__}", "", one_line(cls.__doc__ or "") + limit, ""]
    fields = field_docs(cls)
    if fields:
        lines += [*table(("field", "type", "default", ""), [_row(field) for field in fields]), ""]
    return lines


def _row(field: FieldDoc) -> tuple[str, ...]:
    return (code(field.name), code(field.type), code(field.default) or "required", summary(field.doc))
