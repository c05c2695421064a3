"""EBNF to Lark, as llguidance reads it, with the same language.

A grammar without recursion becomes one regular expression. In others, terminals are single characters, except where
`ebnf_lexemes` shows that longer lexemes cannot change the language.
"""

from __future__ import annotations

import math

from services.scheduler.grammar.ebnf_lexemes import Terminal, loops_over_class, safe_terminals
from services.scheduler.grammar.ebnf_parse import (
    CharClass,
    Choice,
    Literal,
    Node,
    Ref,
    Repeat,
    Rules,
    Sequence,
    merge,
    parse_ebnf,
)
from services.scheduler.grammar.regex_text import char_class, counted, escaped
from shared.errors import InvalidRequest

MAX_REGEX_CHARS = 20_000
MAX_SHORTEST_CHARS = 8_192


def ebnf_to_lark(text: str) -> str:
    """A Lark grammar of the same sentences.

    Raises:
        InvalidRequest: naming the line or the rule.
    """
    regex, lines = ebnf_parts(text, "start")
    return f"start: /{regex}/" if regex is not None else "\n".join(["%llguidance {}", *lines])


def ebnf_parts(text: str, name: str) -> tuple[str | None, list[str]]:
    """A grammar as one regular expression, or else as lines of Lark whose first rule is `name`.

    Raises:
        InvalidRequest: naming the line or the rule.
    """
    rules = _reachable(parse_ebnf(text))
    check_finite(rules)
    regex = _as_regex(rules)
    return (regex, []) if regex is not None else (None, _Lark(_with_loops(rules), name).lines())


def check_finite(rules: Rules) -> None:
    """Refuse rules without a finite sentence.

    Raises:
        InvalidRequest: naming the rule.
    """
    sizes = dict.fromkeys(rules, math.inf)
    changed = True
    while changed:
        changed = False
        for name, node in rules.items():
            size = _size(node, sizes)
            if size < sizes[name]:
                sizes[name], changed = size, True
    for name, size in sizes.items():
        if math.isinf(size):
            raise InvalidRequest(
                f"ebnf: rule {name} refers to itself without an end: no finite text satisfies it", param="ebnf"
            )
        if size > MAX_SHORTEST_CHARS:
            raise InvalidRequest(
                f"ebnf: the shortest text of rule {name} has {size:,.0f} characters, more than {MAX_SHORTEST_CHARS:,}",
                param="ebnf",
            )


def _size(node: Node, sizes: dict[str, float]) -> float:
    match node:
        case Literal(text):
            return len(text)
        case CharClass():
            return 1
        case Ref(name):
            return sizes[name]
        case Sequence(parts):
            return sum(_size(part, sizes) for part in parts)
        case Choice(branches):
            return min(_size(part, sizes) for part in branches)
        case Repeat(part, least):
            inner = _size(part, sizes)
            return inner * least if least else 0.0
    raise AssertionError(node)


def _reachable(rules: Rules) -> Rules:
    seen, todo = {"root"}, ["root"]
    while todo:
        for name in _names(rules[todo.pop()]):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return {name: node for name, node in rules.items() if name in seen}


def _names(node: Node) -> list[str]:
    match node:
        case Ref(name):
            return [name]
        case Sequence(parts) | Choice(parts):
            return [name for part in parts for name in _names(part)]
        case Repeat(part):
            return _names(part)
    return []


# Without recursion: one regular expression.
class _TooLong(Exception):
    """The expression would be too long."""


def _as_regex(rules: Rules) -> str | None:
    """The whole grammar as one expression; None when it recurses or would be too long."""
    done: dict[str, str] = {}
    waiting = dict(rules)
    while waiting:
        ready = [name for name, node in waiting.items() if not {*_names(node)} - {*done}]
        if not ready:
            return None
        for name in ready:
            try:
                done[name] = _regex(waiting.pop(name), done)
            except _TooLong:
                return None
    return done["root"] or None


def _regex(node: Node, rules: dict[str, str]) -> str:
    match node:
        case Literal(text):
            out = escaped(text)
        case CharClass(ranges):
            out = char_class(ranges)
        case Ref(name):
            out = rules[name]
        case Sequence(parts):
            out = "".join(_regex(part, rules) for part in parts)
        case Choice(branches):
            out = "(?:" + "|".join(_regex(part, rules) for part in branches) + ")"
        case Repeat(part):
            out = f"(?:{_regex(part, rules)}){counted(node.least, node.most)}"
    if len(out) > MAX_REGEX_CHARS:
        raise _TooLong
    return out


# With recursion: rules over lexemes.
def _with_loops(rules: Rules) -> Rules:
    """`(class | other)*` as `(class+ | other)*`, the same language with fewer lexemes in a text."""
    return {name: _looped(node, rules) for name, node in rules.items()}


def _looped(node: Node, rules: Rules) -> Node:
    match node:
        case Sequence(parts):
            return Sequence(tuple(_looped(part, rules) for part in parts))
        case Choice(branches):
            return Choice(tuple(_looped(part, rules) for part in branches))
        case Repeat(part, least, None) if least <= 1 and not isinstance(part, CharClass):
            inner = rules[part.name] if isinstance(part, Ref) else part
            classes = [b for b in inner.branches if isinstance(b, CharClass)] if isinstance(inner, Choice) else []
            if isinstance(inner, CharClass):
                return Repeat(inner, least, None)
            if isinstance(inner, Choice) and classes:
                run = Repeat(CharClass(merge([r for c in classes for r in c.ranges])), 1, None)
                others = [_looped(b, rules) for b in inner.branches if not isinstance(b, CharClass)]
                return Repeat(Choice((run, *others)) if others else run.part, least, None)
        case Repeat(part, least, most):
            return Repeat(_looped(part, rules), least, most)
    return node


class _Lark:
    """Writes the grammar; every different lexeme is one terminal."""

    def __init__(self, rules: Rules, start: str) -> None:
        self._rules = rules
        self._start = start
        self._whole: frozenset[Terminal] = safe_terminals(rules)
        self._rule_names = {name: start if name == "root" else f"{start}_{i}" for i, name in enumerate(rules)}
        self._terminals: dict[str, str] = {}

    def lines(self) -> list[str]:
        lines = [f"{self._rule_names[name]}: {self._node(node)}" for name, node in self._rules.items()]
        return lines + [f"{name}: /{regex}/" for regex, name in self._terminals.items()]

    def _node(self, node: Node) -> str:
        match node:
            case Literal(text):
                if node in self._whole or len(text) == 1:
                    return self._terminal(escaped(text))
                return " ".join(self._terminal(escaped(c)) for c in text) or '""'
            case CharClass(ranges):
                return self._terminal(char_class(ranges))
            case Ref(name):
                return self._rule_names[name]
            case Sequence(parts):
                return " ".join(map(self._node, parts)) or '""'
            case Choice(branches):
                return "(" + " | ".join(map(self._node, branches)) + ")"
            case Repeat(part):
                if loops_over_class(node) and node in self._whole:
                    assert isinstance(part, CharClass)
                    return self._terminal(char_class(part.ranges) + "+") + ("?" if node.least == 0 else "")
                return f"({self._node(part)}){counted(node.least, node.most)}"
        raise AssertionError(node)

    def _terminal(self, regex: str) -> str:
        return self._terminals.setdefault(regex, f"{self._start.upper()}_{len(self._terminals)}")
