"""Structural tags (xgrammar's JSON, and the older triggers + structures of SGLang) to Lark, as llguidance reads it.

What is regular becomes one lexeme, so that text before a trigger and text inside a tag end exactly where they should;
JSON and recursive grammars become rules. The text of a special token stands for the token itself.
Source: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services.scheduler.grammar.ebnf import ebnf_parts
from services.scheduler.grammar.json_grammar import checked_schema, json_options
from services.scheduler.grammar.regex_check import check_regex
from services.scheduler.grammar.regex_text import counted, escaped, lark_regex
from services.scheduler.grammar.schema_check import SchemaFault
from shared.errors import InvalidRequest

MAX_DEPTH = 32
MAX_FORMATS = 2_000
ANY = "/(?s:.)*/"
NOTHING = '""'


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of Lark. A regular piece may stand inside a terminal."""

    text: str
    regular: bool


class StructuralTag:
    """Converts one document. Collects the rules and terminals that its parts need."""

    def __init__(self, special_tokens: Mapping[str, int], max_whitespace: int) -> None:
        self._special = special_tokens
        names = sorted(special_tokens, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._max_whitespace = max_whitespace
        self._lines: list[str] = []
        self._formats = 0
        self._convert: dict[str, Callable[[dict[str, Any], str, int], _Part]] = {
            "const_string": self._const_string, "json_schema": self._json_schema, "regex": self._regex,
            "grammar": self._grammar, "any_text": self._any_text, "sequence": self._sequence, "or": self._or,
            "tag": self._tag, "triggered_tags": self._triggered_tags, "tags_with_separator": self._tags_with_separator,
            "optional": self._optional, "plus": self._plus, "star": self._star, "repeat": self._repeat,
            "token": self._token,
        }  # fmt: skip

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats that are understood."""
        return tuple(self._convert)

    def lark(self, source: str) -> str:
        """The whole grammar.

        Raises:
            InvalidRequest: names the place in the document.
        """
        try:
            document = orjson.loads(source)
        except orjson.JSONDecodeError as fault:
            raise InvalidRequest(f"structural_tag is not JSON: {fault}", param="structural_tag") from fault
        if not isinstance(document, dict):
            raise _fault("", "must be an object with a format, or with structures and triggers")
        if "structures" in document:
            part = self._format(_modern(document), "", 0)
        else:
            part = self._format(document.get("format"), "/format", 0)
        return "\n".join(["%llguidance {}", f"start: {self._in_rule(part)}", *self._lines])

    def _format(self, node: Any, path: str, depth: int) -> _Part:
        self._formats += 1
        if depth > MAX_DEPTH or self._formats > MAX_FORMATS:
            raise _fault(path, f"more than {MAX_FORMATS:,} formats, or nested deeper than {MAX_DEPTH}")
        if not isinstance(node, dict):
            raise _fault(path, "must be a format: an object with a type")
        convert = self._convert.get(str(node.get("type")))
        if convert is None:
            raise _fault(
                path, f"format type {node.get('type')!r} is not supported, these are: {', '.join(self._convert)}"
            )
        return convert(node, path, depth)

    # Leaves.
    def _const_string(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return self._text(_string(node, "value", path))

    def _text(self, text: str) -> _Part:
        """A constant; special tokens in it are tokens."""
        parts, at = [], 0
        for found in self._special_text.finditer(text):
            parts += [_literal(text[at : found.start()]), _Part(f"<[{self._special[found[0]]}]>", False)]
            at = found.end()
        return self._joined([*parts, _literal(text[at:])])

    def _json_schema(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        for option, plain in (("style", "json"), ("any_order", False), ("excludes", [])):
            if node.get(option, plain) != plain:
                raise _fault(f"{path}/{option}", f"only {plain!r} is supported")
        limit = node.get("max_whitespace_cnt")
        if limit is not None and (not isinstance(limit, int) or not 0 <= limit <= 64):
            raise _fault(f"{path}/max_whitespace_cnt", "must be 0 to 64, or left out")
        schema = node.get("json_schema")
        if not isinstance(schema, dict | bool):
            raise _fault(f"{path}/json_schema", "must be a JSON Schema")
        try:
            checked = checked_schema(schema)
        except SchemaFault as fault:
            raise _fault(f"{path}/json_schema", fault.message) from fault
        options = json_options(self._max_whitespace if limit is None else limit)
        body = {**(checked if isinstance(checked, dict) else {}), "x-guidance": options}
        return _Part(f"%json {orjson.dumps(body).decode()}", False)

    def _regex(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        pattern = _string(node, "pattern", path)
        check_regex(pattern, "structural_tag", f" at {path}/pattern")
        inner = re.sub(r"^\^|(?<!\\)\$$", "", pattern)
        return _Part(f"/(?:{lark_regex(inner)})/", True) if inner else _Part(NOTHING, True)

    def _grammar(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        name = f"g{len(self._lines)}"
        regex, lines = ebnf_parts(_string(node, "grammar", path), name)
        self._lines += lines
        return _Part(name, False) if regex is None else _Part(f"/(?:{regex})/" if regex else NOTHING, True)

    def _any_text(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return _Part(_text_without(self._strings(node, "excludes", path), _most_chars(node, path)), True)

    def _token(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        token = node.get("token")
        token_id = self._special.get(token) if isinstance(token, str) else token
        if not isinstance(token_id, int) or token_id not in self._special.values():
            raise _fault(f"{path}/token", f"{token!r} is no special token of this model")
        return _Part(f"<[{token_id}]>", False)

    # Combinations.
    def _sequence(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return self._joined(self._elements(node, path, depth))

    def _or(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return self._either(self._elements(node, path, depth))

    def _elements(self, node: dict[str, Any], path: str, depth: int) -> list[_Part]:
        elements = node.get("elements")
        if not isinstance(elements, list) or not elements:
            raise _fault(f"{path}/elements", "must be a list with at least one format")
        return [self._format(element, f"{path}/elements/{i}", depth + 1) for i, element in enumerate(elements)]

    def _optional(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return self._times(self._format(node.get("content"), f"{path}/content", depth + 1), 0, 1)

    def _plus(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return self._times(self._format(node.get("content"), f"{path}/content", depth + 1), 1, None)

    def _star(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return self._times(self._format(node.get("content"), f"{path}/content", depth + 1), 0, None)

    def _repeat(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        least, most = node.get("min"), node.get("max")
        if not isinstance(least, int) or not isinstance(most, int) or not 0 <= least <= 1000 or not -1 <= most <= 1000:
            raise _fault(path, "min must be 0 to 1,000 and max -1 (no bound) to 1,000")
        if -1 < most < least:
            raise _fault(path, f"min {least} is more than max {most}")
        content = self._format(node.get("content"), f"{path}/content", depth + 1)
        return self._times(content, least, None if most == -1 else most)

    def _tag(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        return self._joined([self._edge(node.get("begin"), f"{path}/begin"), *self._inside(node, path, depth)])

    def _inside(self, node: dict[str, Any], path: str, depth: int) -> list[_Part]:
        """Content and end of a tag. Free text inside ends at the first of the ends."""
        ends = node.get("end") if isinstance(node.get("end"), list) else [node.get("end")]
        if not ends:
            raise _fault(f"{path}/end", "must be a string or a list of strings")
        content = node.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text":
            texts = [end for end in ends if isinstance(end, str) and end and end not in self._special]
            content = {**content, "excludes": [*self._strings(content, "excludes", f"{path}/content"), *texts]}
        end = self._either([self._edge(end, f"{path}/end") for end in ends])
        return [self._format(content, f"{path}/content", depth + 1), end]

    def _edge(self, value: Any, path: str) -> _Part:
        if isinstance(value, dict) and value.get("type") == "token":
            return self._token(value, path, 0)
        if not isinstance(value, str):
            raise _fault(path, "must be a string or a token")
        return self._text(value)

    def _tags(self, node: dict[str, Any], path: str) -> list[dict[str, Any]]:
        tags = node.get("tags")
        if not isinstance(tags, list) or not tags or not all(isinstance(tag, dict) for tag in tags):
            raise _fault(f"{path}/tags", "must be a list with at least one tag")
        return tags

    def _tags_with_separator(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        tags = self._tags(node, path)
        tag = self._either([self._tag(t, f"{path}/tags/{i}", depth + 1) for i, t in enumerate(tags)])
        tag = _Part(self._named(tag), tag.regular)
        if not node.get("stop_after_first"):
            more = self._joined([self._text(_string(node, "separator", path, empty=True)), tag])
            tag = self._joined([tag, self._times(more, 0, None)])
        return tag if node.get("at_least_one") else self._times(tag, 0, 1)

    def _triggered_tags(self, node: dict[str, Any], path: str, depth: int) -> _Part:
        """Free text in which what starts like a trigger goes on as one of its tags.

        With at_least_one the first tag comes at once, without text before it.
        """
        triggers = self._strings(node, "triggers", path)
        if not triggers:
            raise _fault(f"{path}/triggers", "must be a list with at least one string")
        excludes = self._strings(node, "excludes", path)
        now, later = [], []
        for i, tag in enumerate(self._tags(node, path)):
            where = f"{path}/tags/{i}"
            begin = _string(tag, "begin", where)
            trigger = next((t for t in triggers if begin.startswith(t)), None)
            if trigger is None:
                raise _fault(f"{where}/begin", f"{begin!r} begins with none of the triggers")
            inside = self._joined(self._inside(tag, where, depth + 1))
            inside = _Part(self._named(inside), inside.regular)
            now.append(self._joined([self._text(begin), inside]))
            head = self._up_to(trigger, triggers, excludes)
            later.append(self._joined([head, self._text(begin[len(trigger) :]), inside]))
        rest = _Part(_text_without([*excludes, *(t for t in triggers if t not in self._special)], None), True)
        if node.get("stop_after_first"):
            return self._either(now if node.get("at_least_one") else [*later, rest])
        more = self._joined([self._times(self._either(later), 0, None), _Part(self._named(rest), False)])
        return self._joined([self._either(now), more]) if node.get("at_least_one") else more

    def _up_to(self, trigger: str, triggers: list[str], excludes: list[str]) -> _Part:
        """Text up to and including the first trigger, which is `trigger`."""
        plain = [t for t in triggers if t not in self._special]
        if trigger in self._special:
            return self._joined([_Part(_text_without([*excludes, *plain], None), True), self._text(trigger)])
        any_trigger = "|".join(escaped(t) for t in plain)
        text = f"({ANY} /{escaped(trigger)}/) & ~({ANY} /{any_trigger}/ /(?s:.)+/)"
        text += "".join(f" & ~({ANY} /{escaped(e)}/ {ANY})" for e in excludes)
        return _Part(f"({text})", True)

    # Putting pieces together.
    def _joined(self, parts: list[_Part]) -> _Part:
        """One after the other; neighbours that are regular become one lexeme."""
        parts = [part for part in parts if part.text != NOTHING]
        if not parts:
            return _Part(NOTHING, True)
        if all(part.regular for part in parts):
            return _Part(" ".join(part.text for part in parts), True)
        out: list[str] = []
        run: list[str] = []
        for part in parts:
            if part.regular:
                run.append(part.text)
                continue
            if run:
                out.append(self._named(_Part(" ".join(run), True)))
                run = []
            out.append(part.text)
        if run:
            out.append(self._named(_Part(" ".join(run), True)))
        return _Part(" ".join(out), False)

    def _either(self, parts: list[_Part]) -> _Part:
        if len(parts) == 1:
            return parts[0]
        if all(part.regular for part in parts):
            return _Part("(" + " | ".join(f"({part.text})" for part in parts) + ")", True)
        return _Part("(" + " | ".join(self._in_rule(part) for part in parts) + ")", False)

    def _times(self, part: _Part, least: int, most: int | None) -> _Part:
        if part.text == NOTHING:
            return part
        inner = f"({part.text})" if part.regular else self._named(part)
        return _Part(f"({inner}){counted(least, most)}", part.regular)

    def _in_rule(self, part: _Part) -> str:
        return self._named(part) if part.regular and part.text != NOTHING else part.text

    def _named(self, part: _Part) -> str:
        """A rule or terminal of its own."""
        if part.text == NOTHING:
            return NOTHING
        name = f"{'T' if part.regular else 'p'}{len(self._lines)}"
        self._lines.append(f"{name}: {part.text}")
        return name

    def _strings(self, node: dict[str, Any], key: str, path: str) -> list[str]:
        value = node.get(key, [])
        if not isinstance(value, list) or any(not isinstance(text, str) or not text for text in value):
            raise _fault(f"{path}/{key}", "must be a list of strings that are not empty")
        return value


def _modern(document: dict[str, Any]) -> dict[str, Any]:
    """The older form (triggers and structures) as a format."""
    structures = document["structures"]
    if not isinstance(structures, list) or not all(isinstance(s, dict) for s in structures):
        raise _fault("/structures", "must be a list of objects with begin, schema and end")
    tags = [
        {"type": "tag", "begin": s.get("begin"), "end": s.get("end"),
         "content": {"type": "json_schema", "json_schema": s.get("schema", {})}}
        for s in structures
    ]  # fmt: skip
    return {"type": "triggered_tags", "triggers": document.get("triggers"), "tags": tags}


def _literal(text: str) -> _Part:
    return _Part(f"/{escaped(text)}/" if text else NOTHING, True)


def _text_without(excludes: list[str], most_chars: int | None) -> str:
    text = ANY if most_chars is None else f"/(?s:.){{0,{most_chars}}}/"
    for exclude in excludes:
        text += f" & ~({ANY} /{escaped(exclude)}/ {ANY})"
    return f"({text})" if excludes else text


def _most_chars(node: dict[str, Any], path: str) -> int | None:
    if node.get("max_tokens") is not None:
        raise _fault(f"{path}/max_tokens", "is not supported: use max_chars")
    most = node.get("max_chars")
    if most is not None and (not isinstance(most, int) or not 0 < most <= 100_000):
        raise _fault(f"{path}/max_chars", "must be 1 to 100,000")
    return most


def _string(node: dict[str, Any], key: str, path: str, *, empty: bool = False) -> str:
    value = node.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise _fault(f"{path}/{key}", "must be a string that is not empty")
    return value


def _fault(path: str, text: str) -> InvalidRequest:
    return InvalidRequest(f"structural_tag at {path or '/'}: {text}", param="structural_tag")
