"""The one grammar of a body, whichever of its many fields it came in."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

import orjson

from services.gateway.grammar_bodies import JsonSchema, ResponseFormat, StructuredOutputs
from services.gateway.native_bodies import NativeSampling
from services.gateway.openai_bodies import GenerationFields
from shared.errors import InvalidRequest
from shared.grammar import GrammarKind, GrammarSpec

ANY_JSON = "$$ANY$$"
"""SGLang's `json_schema` for any JSON object."""
MAX_CHOICES = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A grammar and the field of the body that it came in."""

    param: str
    kind: GrammarKind
    source: str


def grammar_of(body: GenerationFields | NativeSampling, prefix: str = "") -> GrammarSpec | None:
    """What the body says about the form of the text, None when it says nothing.

    Args:
        prefix: of the names of fields in errors, with its dot.

    Raises:
        InvalidRequest: two fields say something, or one says what no grammar can be.
    """
    found = list(_asked(body, prefix))
    if len(found) > 1:
        raise InvalidRequest(
            f"{found[0].param} and {found[1].param} both say what the text must look like: give one",
            param=found[1].param,
        )
    if not found:
        return None
    asked = found[0]
    spec = GrammarSpec(asked.kind, asked.source, body.max_whitespace or 0, body.jump_forward is not False)
    try:
        spec.check()
    except InvalidRequest as fault:
        param = prefix + "max_whitespace" if fault.param == "max_whitespace" else asked.param
        raise InvalidRequest(fault.message, param=param) from fault
    return spec


@contextlib.contextmanager
def naming(body: GenerationFields) -> Iterator[None]:
    """Faults of the grammar that are found behind the gateway get the client's name of its field."""
    try:
        yield
    except InvalidRequest as fault:
        asked = next(_asked(body, ""), None)
        if asked is None or fault.param not in get_args(GrammarKind):
            raise
        raise InvalidRequest(fault.message, param=asked.param) from fault


def _asked(body: GenerationFields | NativeSampling, prefix: str) -> Iterator[Asked]:
    for name, read in _FIELDS.items():
        if (value := getattr(body, name, None)) is not None:
            yield from read(value, prefix + name)


def _text(kind: GrammarKind) -> Callable[[str, str], Iterator[Asked]]:
    def read(value: str, param: str) -> Iterator[Asked]:
        if not value:
            raise InvalidRequest(f"{param} is empty: leave it out, or give the grammar", param=param)
        yield Asked(param, kind, value)

    return read


def _json_schema(value: JsonSchema, param: str) -> Iterator[Asked]:
    if value == ANY_JSON:
        yield Asked(param, "json_object", "")
    else:
        yield Asked(param, "json_schema", _object_text(value, param))


def _choice(value: list[str], param: str) -> Iterator[Asked]:
    if not 1 <= len(value) <= MAX_CHOICES:
        raise InvalidRequest(f"{param} has {len(value):,} entries: give 1 to {MAX_CHOICES:,} strings", param=param)
    seen: dict[str, int] = {}
    for i, text in enumerate(value):
        where = f"{param}[{i}]"
        if not text:
            raise InvalidRequest(f"{where} is empty: a choice needs at least one character", param=where)
        if seen.setdefault(text, i) != i:
            raise InvalidRequest(f"{where} is the same as {param}[{seen[text]}]: give each choice once", param=where)
    yield Asked(param, "choice", orjson.dumps(value).decode())


def _structural_tag(value: JsonSchema, param: str) -> Iterator[Asked]:
    tag = orjson.loads(_object_text(value, param))
    if "structures" in tag:
        tag = _from_older_form(tag, param)
    elif not isinstance(tag.get("format"), dict):
        raise InvalidRequest(f"{param} needs a 'format' that is an object", param=param)
    yield Asked(param, "structural_tag", orjson.dumps({"type": "structural_tag", "format": tag["format"]}).decode())


def _from_older_form(tag: dict[str, Any], param: str) -> dict[str, Any]:
    structures, triggers = tag["structures"], tag.get("triggers")
    if not isinstance(structures, list) or not all(
        isinstance(s, dict) and isinstance(s.get("begin"), str) and isinstance(s.get("end"), str)
        and isinstance(s.get("schema"), dict | None) for s in structures
    ):  # fmt: skip
        raise InvalidRequest(f"{param}.structures must be objects with begin, schema and end", param=param)
    if not isinstance(triggers, list) or not all(isinstance(t, str) and t for t in triggers):
        raise InvalidRequest(f"{param}.triggers must be strings that the begins start with", param=param)
    for i, s in enumerate(structures):
        if not any(s["begin"].startswith(t) for t in triggers):
            raise InvalidRequest(f"{param}.structures[{i}].begin starts with none of the triggers", param=param)
    tags = [
        {
            "type": "tag", "begin": s["begin"], "end": s["end"],
            "content": {"type": "json_schema", "json_schema": s.get("schema") or {}},
        }
        for s in structures
    ]  # fmt: skip
    return {"format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}


def _response_format(value: ResponseFormat, param: str) -> Iterator[Asked]:
    if value.type == "json_object":
        yield Asked(param, "json_object", "")
    elif value.type == "json_schema":
        if value.json_schema is None:
            raise InvalidRequest(f"missing required field '{param}.json_schema'", param=f"{param}.json_schema")
        yield from _json_schema(value.json_schema.schema, f"{param}.json_schema.schema")
    elif value.type == "structural_tag":
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if value.structures is not None:
            given["structures"] = [dataclasses.asdict(s) for s in value.structures]
        yield from _structural_tag({k: v for k, v in given.items() if v is not None}, param)


def _structured_outputs(value: StructuredOutputs, param: str) -> Iterator[Asked]:
    for name, read in _STRUCTURED.items():
        if (inner := getattr(value, name)) is not None:
            yield from read(inner, f"{param}.{name}")


def _json_object(value: bool, param: str) -> Iterator[Asked]:
    if value:
        yield Asked(param, "json_object", "")


def _object_text(value: JsonSchema, param: str) -> str:
    """The JSON text of an object that came as itself or as its text."""
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"{param} is not valid JSON: {fault}", param=param) from fault
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{param} must be the text of a JSON object", param=param)
    return value


_Reader = Callable[[Any, str], Iterator[Asked]]
_FIELDS: dict[str, _Reader] = {
    "response_format": _response_format,
    "json_schema": _json_schema,
    "regex": _text("regex"),
    "ebnf": _text("ebnf"),
    "choice": _choice,
    "structural_tag": _structural_tag,
    "structured_outputs": _structured_outputs,
    "guided_json": _json_schema,
    "guided_regex": _text("regex"),
    "guided_choice": _choice,
    "guided_grammar": _text("ebnf"),
}
_STRUCTURED: dict[str, _Reader] = {
    "json": _json_schema,
    "regex": _text("regex"),
    "choice": _choice,
    "grammar": _text("ebnf"),
    "json_object": _json_object,
    "structural_tag": _structural_tag,
}
