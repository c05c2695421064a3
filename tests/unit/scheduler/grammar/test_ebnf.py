"""EBNF: the language is exactly that of the rules, errors name the line.

The judge of languages is a naive recognizer that works out every text up to a length from the parsed rules.
"""

from __future__ import annotations

import itertools
import random

import pytest

from services.scheduler.grammar.ebnf_lexemes import safe_terminals
from services.scheduler.grammar.ebnf_parse import (
    CharClass,
    Choice,
    Literal,
    Node,
    Ref,
    Repeat,
    Rules,
    Sequence,
    complement,
    merge,
    parse_ebnf,
)
from shared.errors import InvalidRequest
from tests.unit.scheduler.grammar.tiny import matches, of_ebnf, walk

JSON = r"""
# JSON without escapes
root   ::= object
object ::= "{" ws ( pair ("," ws pair)* )? "}"
pair   ::= string ":" ws value
value  ::= object | array | string | number | "true" | "false" | "null"
array  ::= "[" ws ( value ("," ws value)* )? "]"
string ::= "\"" ( [^"\\\x00-\x1f] | "\\" ["\\/bfnrt] )* "\""
number ::= "-"? [0-9]+ ("." [0-9]+)?
ws     ::= [ \t\n]*
"""
SMALL = [
    'root ::= "a" | "ab" | "b"',
    'root ::= "ab"* "a"?',
    'root ::= [ab]+ "b"',
    'root ::= [ab]* "ab" [^a]?',
    'root ::= x "b" | x root\nx ::= [ab]+',
    'root ::= "a" root "b" | ""',
    'root ::= "(" root ")" root | ""',
    'root ::= root root | "a" | "b"',
    'root ::= e\ne ::= e "a" e | "b"',
    'root ::= "a" root | "ab" root | "b"',
    'root ::= "aa" root | "a"',
    'root ::= word ("a" word)* | "(" root ")"\nword ::= [b]+',
    'root ::= word root | word\nword ::= [ab]+ "b"?',
    'root ::= "a"{2,3} ("b" root)?',
    'root ::= ("ab" | "a")+ "b" | "(" root ")"',
    'root ::= [ab]+ [b]+ | "(" root ")"',
    'root ::= "ab" t | "abb" root\nt ::= "b" | "a" root',
    'root ::= ([a] | "b" [ab])* "(" root | ")"',
    'root ::= "(" ws root ws ")" | "a"\nws ::= [b]*',
]


def texts(node: Node, rules: dict[str, set[str]], longest: int) -> set[str]:
    """Every text of a node up to a length, given those of the rules so far."""
    match node:
        case Literal(text):
            return {text} if len(text) <= longest else set()
        case CharClass(ranges):
            return {c for c in "ab()," if any(low <= ord(c) <= high for low, high in ranges)}
        case Ref(name):
            return rules[name]
        case Choice(branches):
            return set().union(*(texts(b, rules, longest) for b in branches))
        case Sequence(parts):
            out = {""}
            for part in parts:
                out = _joined(out, texts(part, rules, longest), longest)
            return out
        case Repeat(part, least, most):
            inner, out, seen = texts(part, rules, longest), {""}, set()
            for _ in range(least):
                out = _joined(out, inner, longest)
            for _ in range(longest + 1 if most is None else most - least):
                seen |= out
                out = _joined(out, inner, longest)
            return seen | out
    raise AssertionError(node)


def _joined(left: set[str], right: set[str], longest: int) -> set[str]:
    return {a + b for a in left for b in right if len(a) + len(b) <= longest}


def languages(rules: Rules, longest: int) -> dict[str, set[str]]:
    """Every text of each rule up to a length."""
    known: dict[str, set[str]] = {name: set() for name in rules}
    while True:
        new = {name: texts(node, known, longest) for name, node in rules.items()}
        if new == known:
            return known
        known = new


def random_grammar(rng: random.Random) -> str:
    """Rules over a, b and parentheses that recurse and collide a lot."""

    def node(depth: int) -> str:
        match rng.randrange(8 if depth else 4):
            case 0 | 1:
                return '"' + "".join(rng.choice("ab(") for _ in range(rng.randrange(1, 4))) + '"'
            case 2:
                return rng.choice(["[ab]", "[a]", "[^b]", "[ab]*", "[b]+", "[ab)]+"])
            case 3:
                return rng.choice(["root", "x", "y"])
            case 4 | 5:
                return f"({node(depth - 1)} {node(depth - 1)})"
            case 6:
                return f"({node(depth - 1)} | {node(depth - 1)})"
        return f"({node(depth - 1)}){rng.choice('*+?')}"

    return f'root ::= {node(3)} | {node(2)} ")"\nx ::= {node(2)} | "a"\ny ::= {node(2)} | [b]+ "a"'


@pytest.mark.parametrize("text", SMALL)
def test_the_language_is_that_of_the_rules(text: str) -> None:
    check_language(text, 6)


@pytest.mark.parametrize("seed", range(60))
def test_the_language_of_random_rules_is_theirs(seed: int) -> None:
    check_language(random_grammar(random.Random(seed)), 5)


def check_language(text: str, longest: int) -> None:
    known = languages(parse_ebnf(text), longest)
    if not all(known.values()):
        with pytest.raises(InvalidRequest, match="without an end"):
            of_ebnf(text)
        return
    expected, grammar = known["root"], of_ebnf(text)
    every = ("".join(t) for n in range(longest + 1) for t in itertools.product("ab()", repeat=n))
    wrong = [t for t in every if matches(grammar, t) != (t in expected)]
    assert wrong == []


def test_json_keeps_whole_lexemes_and_walks_end_in_json() -> None:
    assert {t.text for t in safe_terminals(parse_ebnf(JSON)) if isinstance(t, Literal)} == {"true", "false", "null"}
    grammar = of_ebnf(JSON)
    assert matches(grammar, '{"a": [1,-2.5,{"b\\n": null}],"c":true}')
    assert not matches(grammar, '{"a" :1}')
    for seed in range(10):
        assert matches(grammar, walk(grammar, seed, most_tokens=20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('start ::= "a"', "no rule named root"),
        ("root ::= foo", "line 1: rule foo is not defined"),
        ('root ::= "a"\nx ::= "b"\n\nx ::= "c"', "line 4: rule x is defined twice"),
        ('root ::= "a"\n  | "b\n', "line 2: cannot read"),
        ('root ::= [a-', "line 1: cannot read"),
        ('root ::= [z-a]', "line 1: .*range ends before"),
        ("root ::= []", "line 1: .*no character"),
        ('root ::= ("a"\n', "line 1: this \\( is never closed"),
        ('root ::= "a")', "line 1: expected a rule"),
        ("root ::= *", "line 1: '\\*' has nothing before it"),
        ('root ::= "a"{3,2}', "line 1: .*first number is the smaller"),
        ('root ::= "a"{5000}', "line 1: .*at most 1,000"),
        ('root ::= "\\q"', "line 1: unknown escape"),
        ('root ::= "\\ud800"', "line 1: .*no character"),
        ('root ::= "a"\nb := "c"', "line 2: cannot read|line 2: expected a rule"),
        ('root ::= "a" root', "rule root refers to itself without an end"),
        ('root ::= "a" | x\nx ::= y\ny ::= x', "rule x refers to itself without an end"),
        ('root ::= (("a"{1000}){1000}) | root', "shortest text of rule root"),
        ("root ::= " + "(" * 300 + '"a"' + ")" * 300, "line 1: groups nested deeper"),
        ('root ::= ""', "only the empty text"),
    ],
)  # fmt: skip
def test_a_grammar_that_is_wrong_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        of_ebnf(text)
    assert caught.value.param == "ebnf"


def test_unused_rules_may_be_anything_that_parses() -> None:
    assert matches(of_ebnf('root ::= "a"\nunused ::= "b" unused'), "a")


def test_escapes_and_classes() -> None:
    grammar = of_ebnf(r'root ::= "\n\t\"\\\x41\u00e9\U0001F600" [\]\-^a-c] [^\x00-\x7f] .')
    assert matches(grammar, '\n\t"\\Aé😀]日x')
    assert matches(grammar, '\n\t"\\Aé😀-日x')
    assert not matches(grammar, '\n\t"\\Aé😀dx')
    assert not matches(grammar, '\n\t"\\Aé😀]日\n')


def test_ranges() -> None:
    assert merge([(5, 9), (1, 3), (4, 4), (20, 30), (25, 40)]) == ((1, 9), (20, 40))
    assert complement(complement(((0, 3), (7, 0x10FFFF)))) == ((0, 3), (7, 0x10FFFF))
