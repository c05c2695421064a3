"""Typed dataclasses <-> JSON values: strict parsing with the path of the fault, and JSON Schema.

The same dataclasses describe messages on the bus and bodies over HTTP, so one parser validates both and the
OpenAPI document is generated from what the parser accepts. Numpy array fields are not JSON: `shared.wire`
carries them beside the header and they are skipped here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequest

T = TypeVar("T")
Converter = Callable[[Any, str], Any]


def parse(cls: type[T], value: object, path: str = "", *, extra: Literal["forbid", "ignore"] = "forbid") -> T:
    """Build `cls` (a dataclass) from a decoded JSON object.

    Raises:
        InvalidRequest: with `param` set to the path of the first value that does not fit, for example
            `messages[0].role`.
    """
    return typing.cast(T, _dataclass_converter(cls, extra)(value, path))  # type: ignore[arg-type]


def to_json(obj: Any) -> dict[str, Any]:
    """Dataclass to a JSON-ready dict. Array fields and fields equal to their plain default are left out."""
    out: dict[str, Any] = {}
    for name, default, is_array in _plain_fields(type(obj)):  # type: ignore[arg-type]
        if is_array:
            continue
        value = getattr(obj, name)
        if value is default or (default is not dataclasses.MISSING and value == default):
            continue
        out[name] = _jsonable(value)
    return out


def is_array_type(tp: Any) -> bool:
    """True for `NDArray[...]` and `NDArray[...] | None`."""
    origin = get_origin(tp)
    if tp is np.ndarray or origin is np.ndarray or origin is npt.NDArray:  # the last on Python 3.12 and newer
        return True
    return origin in (Union, types.UnionType) and any(is_array_type(a) for a in get_args(tp))


def hints(cls: type) -> dict[str, Any]:
    """Resolved field types of a dataclass, cached."""
    return _hints(cls)


def json_schema(tp: Any, defs: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of a type; schemas of nested dataclasses are put into `defs` and referenced."""
    if dataclasses.is_dataclass(tp) and isinstance(tp, type):
        if tp.__name__ not in defs:
            defs[tp.__name__] = {}
            defs[tp.__name__] = _object_schema(tp, defs)
        return {"$ref": f"#/components/schemas/{tp.__name__}"}
    origin, args = get_origin(tp), get_args(tp)
    if tp is Any or tp is object:
        return {}
    if tp in _PRIMITIVE_SCHEMA:
        return dict(_PRIMITIVE_SCHEMA[tp])
    if origin is Literal:
        return {"enum": list(args)}
    if origin is list:
        return {"type": "array", "items": json_schema(args[0], defs)}
    if origin is dict:
        return {"type": "object", "additionalProperties": json_schema(args[1], defs)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [json_schema(a, defs) for a in args]}
    raise TypeError(f"no JSON Schema for {tp!r}")


_PRIMITIVE_SCHEMA: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


def _object_schema(cls: type, defs: dict[str, Any]) -> dict[str, Any]:
    types_, properties, required = _hints(cls), {}, []
    for f in dataclasses.fields(cls):
        if is_array_type(types_[f.name]):
            continue
        schema = json_schema(types_[f.name], defs)
        if help_ := f.metadata.get("help"):
            schema["description"] = help_
        properties[f.name] = schema
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            required.append(f.name)
    out: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        out["required"] = required
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
        out["description"] = cls.__doc__.strip().split("\n\n")[0].replace("\n    ", " ")
    return out


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _plain_fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    types_ = _hints(cls)
    return tuple((f.name, f.default, is_array_type(types_[f.name])) for f in dataclasses.fields(cls))


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        if not value or isinstance(value[0], (int, float, str)):
            return value
        return [_jsonable(v) for v in value]
    if dataclasses.is_dataclass(value):
        return to_json(value)
    return value


@functools.cache
def _dataclass_converter(cls: type, extra: str) -> Converter:
    types_ = _hints(cls)
    fields = [f for f in dataclasses.fields(cls) if not is_array_type(types_[f.name])]
    arrays = {f.name for f in dataclasses.fields(cls)} - {f.name for f in fields}
    # Built on first use so that a dataclass may refer to itself.
    converters: dict[str, Converter] = {}
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise _mismatch(path, "an object", value)
        if not converters:
            converters.update({f.name: _converter(types_[f.name], extra) for f in fields})
        kwargs = {}
        for key, item in value.items():
            conv = converters.get(key)
            where = f"{path}.{key}" if path else key
            if conv is not None:
                kwargs[key] = conv(item, where)
            elif key not in arrays and extra == "forbid":
                where = _clip(where, 120)
                raise InvalidRequest(f"unknown field {where!r}: remove it or check its spelling", param=where)
        for key in required:
            if key not in kwargs:
                where = f"{path}.{key}" if path else key
                raise InvalidRequest(f"missing required field {where!r}", param=where)
        for key in arrays:
            kwargs[key] = None  # filled in by shared.wire
        return cls(**kwargs)

    return convert


@functools.cache
def _converter(tp: Any, extra: str) -> Converter:
    origin, args = get_origin(tp), get_args(tp)
    if tp is Any or tp is object:
        return lambda value, path: value
    if tp in _SCALARS:
        return _SCALARS[tp]
    if dataclasses.is_dataclass(tp) and isinstance(tp, type):
        return _dataclass_converter(tp, extra)
    if origin is Literal:
        return _literal(args)
    if origin is list:
        return _list(_converter(args[0], extra))
    if origin is dict:
        return _dict(_converter(args[1], extra))
    if origin in (Union, types.UnionType):
        return _union(args, extra)
    raise TypeError(f"no JSON conversion for {tp!r}")


_SHOWN = reprlib.Repr()  # bounded in depth and length: the value may be megabytes or nested a thousand times
_SHOWN.maxlevel, _SHOWN.maxstring = 3, 60


def _mismatch(path: str, wanted: str, value: Any) -> InvalidRequest:
    huge = type(value) is int and value.bit_length() > 64
    shown = f"one of {value.bit_length()} bits" if huge else _SHOWN.repr(value)
    path = _clip(path, 120)
    return InvalidRequest(f"{path or 'the body'} must be {wanted}, got {_clip(shown, 60)}", param=path or None)


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _to_str(value: Any, path: str) -> str:
    if type(value) is not str:
        raise _mismatch(path, "a string", value)
    return value


def _to_int(value: Any, path: str) -> int:
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if type(value) is not int:
        raise _mismatch(path, "an integer", value)
    if not -(2**63) <= value < 2**64:
        raise _mismatch(path, "an integer of at most 64 bits", value)
    return value


def _to_float(value: Any, path: str) -> float:
    if type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not float or not math.isfinite(value):
        raise _mismatch(path, "a finite number", value)
    return value


def _to_bool(value: Any, path: str) -> bool:
    if type(value) is not bool:
        raise _mismatch(path, "true or false", value)
    return value


def _to_none(value: Any, path: str) -> None:
    if value is not None:
        raise _mismatch(path, "null", value)


_SCALARS: dict[Any, Converter] = {
    str: _to_str, int: _to_int, float: _to_float, bool: _to_bool, type(None): _to_none,
}  # fmt: skip


def _literal(allowed: tuple[Any, ...]) -> Converter:
    kinds = {type(a) for a in allowed}

    def convert(value: Any, path: str) -> Any:
        if type(value) in kinds and value in allowed:
            return value
        raise _mismatch(path, "one of " + ", ".join(repr(a) for a in allowed), value)

    return convert


def _list(item: Converter) -> Converter:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise _mismatch(path, "an array", value)
        if item is _to_int and all(type(v) is int for v in value):  # token ids: keep long prompts cheap
            return value
        return [item(v, f"{path}[{i}]") for i, v in enumerate(value)]

    return convert


def _dict(item: Converter) -> Converter:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise _mismatch(path, "an object", value)
        return {_to_str(k, path): item(v, f"{path}.{k}") for k, v in value.items()}

    return convert


def _union(args: tuple[Any, ...], extra: str) -> Converter:
    members = [(a, _converter(a, extra)) for a in args]
    others = [m for m in members if m[0] is not type(None)]
    nullable = len(others) < len(members)
    by_type = {kind: conv for member, conv in others if (kind := _type_tag(member)) is not None}

    def convert(value: Any, path: str) -> Any:
        if value is None and nullable:
            return None
        if len(by_type) == len(others) and isinstance(value, dict):
            kind = value.get("type")
            if not isinstance(kind, str) or kind not in by_type:
                raise _mismatch(f"{path}.type" if path else "type", " or ".join(map(repr, by_type)), kind)
            return by_type[kind](value, path)
        faults: list[InvalidRequest] = []
        for _, conv in others:
            try:
                return conv(value, path)
            except InvalidRequest as fault:
                faults.append(fault)
        # The member that got furthest into the value explains the fault best.
        best = max(faults, key=lambda f: len(f.param or ""))
        if len(faults) > 1 and all(f.param == best.param for f in faults):
            wanted = " or ".join(_name(a) for a, _ in others)
            raise _mismatch(path, wanted, value)
        raise best

    return convert


def _type_tag(tp: Any) -> str | None:
    """The one value of a dataclass's field `type`, by which it is told from the other members of a union."""
    if not dataclasses.is_dataclass(tp) or not isinstance(tp, type) or "type" not in (own := hints(tp)):
        return None
    values = get_args(own["type"]) if get_origin(own["type"]) is Literal else ()
    return values[0] if len(values) == 1 else None


def _name(tp: Any) -> str:
    plain = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    if tp in plain:
        return plain[tp]
    if get_origin(tp) is list:
        return f"an array of {_name(get_args(tp)[0]).removeprefix('a ').removeprefix('an ')}s"
    return "an object"
