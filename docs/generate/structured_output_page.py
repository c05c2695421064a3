"""docs/structured_output.md: what a grammar may be and what is enforced, from the tables that enforce it."""

from __future__ import annotations

from docs.generate.markdown import NOTICE, code, table
from services.scheduler.grammar import ebnf_parse, regex_check, schema_check, schema_size, sources
from services.scheduler.grammar.budget import MASK_MS, START_MS
from services.scheduler.grammar.matcher_state import SLOW_MS
from services.scheduler.grammar.schema_keywords import (
    ANNOTATIONS,
    ENFORCED,
    EXACT_FORMATS,
    NUMBER_FORMATS,
    REFUSED,
    STRING_FORMATS,
)
from services.scheduler.grammar.structural_tag import StructuralTag
from shared.grammar import MAX_SOURCE_CHARS

_INTRO = """\
# Structured output

A request may carry one grammar; every token is then chosen among those that keep the text on a way to a whole sentence
of it, and the request ends only where a sentence does (or at its limit of tokens). What cannot be enforced is refused
with status 400 and the place, never ignored.
"""
_ASK = """\
## How to ask

```bash
curl http://127.0.0.1:30000/v1/chat/completions -H 'Content-Type: application/json' -d '{
  "messages": [{"role": "user", "content": "When did the French Revolution begin?"}], "max_tokens": 64,
  "response_format": {"type": "json_schema", "json_schema": {"name": "event", "schema": {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 30}, "year": {"type": "integer"}},
    "required": ["name", "year"], "additionalProperties": false}}}}'
```

With the official client a pydantic model is the schema; what it does not know goes into `extra_body`:

```python
from openai import OpenAI
from pydantic import BaseModel


class Event(BaseModel):
    name: str
    year: int


client = OpenAI(base_url="http://127.0.0.1:30000/v1", api_key="none")
question = [{"role": "user", "content": "When did the French Revolution begin?"}]
answer = client.chat.completions.parse(
    model="SmolLM2-135M-Instruct", messages=question, response_format=Event, max_tokens=128
)
print(answer.choices[0].message.parsed)
answer = client.chat.completions.create(
    model="SmolLM2-135M-Instruct", messages=question, max_tokens=16, extra_body={"regex": "In 1[0-9]{3}[.]"}
)
print(answer.choices[0].message.content)
```

One of these fields of a body; two are a 400:
"""
_BODIES = "`/v1/chat/completions`, `/v1/completions`"
_NATIVE = "the same, and `sampling_params` of `/generate`"
_FIELDS = [
    ("`response_format`", _BODIES, "OpenAI's: `json_schema`, `json_object`; SGLang's `structural_tag`"),
    ("`json_schema`, `structural_tag`", _NATIVE, "an object, or its JSON text"),
    ("`regex`, `ebnf`", _NATIVE, "the text of the grammar"),
    ("`choice`", _NATIVE, "a list of strings"),
    ("`structured_outputs`", _BODIES, "vLLM's object with `json`, `regex`, `choice`, `grammar`, `json_object` or "
     "`structural_tag`"),
    ("`guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`", _BODIES, "vLLM's older names"),
    ("`grammar`", "`GenerateRequest` on NATS", "`kind` and `source` of the table below"),
]  # fmt: skip
_ASK_END = """\
Beside it `max_whitespace` and `jump_forward`, see below. Give `max_tokens` enough room, or bound strings and lists in
the schema: a text that is cut at the limit (`finish_reason: "length"`) is the beginning of a sentence. The model is not
shown the grammar; say in the prompt what you want. Tools have [a page of their own](tools.md).

## Kinds
"""
_KINDS = [
    ("json_object", "none", "any JSON object"),
    ("json_schema", "a JSON Schema", "the keywords below"),
    (
        "regex",
        "a regular expression that the whole text matches",
        "syntax of Rust's `regex`: no look-around, no back references; `\\d` is 0 to 9, `\\w` and `\\s` are Unicode's",
    ),
    (
        "ebnf",
        "rules as xgrammar and llama.cpp (GBNF) write them, starting at `root`",
        "any context-free grammar, also an ambiguous or left-recursive one",
    ),
    ("choice", "a JSON array of strings", "one of them"),
    (
        "structural_tag",
        "xgrammar's structural tag, or SGLang's older `triggers` and `structures`",
        "tool calls in free text; the text of a special token stands for the token",
    ),
]
_JSON = """\
JSON is compact: no white space unless `max_whitespace` allows up to so many characters between two tokens. A character
has one spelling: `\\uXXXX` and `\\/` are not generated, so control characters other than `\\b \\t \\n \\f \\r` cannot
appear. Properties come in the order of the schema.

Where only one text can follow it is not sampled token by token but appended at once (`jump_forward`, true unless you
say false), cut into tokens as the tokenizer would cut it. Such tokens count and have log probabilities like any other;
without jumps the model may cut the same text otherwise, and so go on differently.
"""
_BACKENDS = f"""\
## Backends

`--grammar-backend auto` is llguidance for every kind: its work per token has limits (about 20 ms at the worst), it
compiles in milliseconds, and in JSON its masks are about as fast as xgrammar's (`python -m benchmarks.grammar_compile`,
figures in [benchmarks.md](benchmarks.md)). One request may spend {START_MS:g} ms on masks and
{MASK_MS:g} ms more per token; beyond that it ends with an error. `--grammar-backend xgrammar` needs the extra
`xgrammar` (which brings torch); it has no such
limits, so a regex or an EBNF of somebody you do not trust can stop the scheduler. It refuses JSON Schema keywords that
it would ignore.

Masks are worked out once for each place of a regular grammar and kept for all its requests: regexes without
look-around, anchors or flags, choices, and compact JSON Schemas of objects with `"additionalProperties": false`,
arrays, strings bounded at most in length, numbers and literals. Other grammars pay for every mask, and one whose masks
take over {SLOW_MS:g} ms is followed beside the step loop, so that only its own request waits.

Every grammar is first tried in a process of its own that is killed when it takes longer than `--grammar-timeout-s` or
more memory than `--grammar-memory-bytes`. Quick grammars do not wait behind slow ones.
"""


def render() -> str:
    """The page."""
    kinds = table(("kind", "source", "notes"), [(code(kind), source, note) for kind, source, note in _KINDS])
    fields = table(("field", "where", "what"), _FIELDS)
    lines = [NOTICE, "", _INTRO, _ASK, *fields, "", _ASK_END, *kinds, "", _JSON, "## JSON Schema", "", "Enforced:", ""]
    lines += table(("keyword", "notes"), [(code(k), note) for k, note in ENFORCED.items()])
    exact = ", ".join(code(name) for name in EXACT_FORMATS)
    lines += ["", "Formats of strings: " + ", ".join(map(code, STRING_FORMATS)) + f". {exact} are those of RFC 3339,"]
    lines += ["without dates that do not exist and without leap seconds. Formats of numbers:"]
    lines += [", ".join(f"{code(k)}{' (its range)' if v else ''}" for k, v in NUMBER_FORMATS.items()) + "."]
    lines += [
        "",
        "Without effect on what is generated: " + ", ".join(map(code, ANNOTATIONS)) + ", and every keyword that",
    ]
    lines += [
        "starts with `x-`. Unknown keywords are refused, so that a misspelt one does not pass.",
        "",
        "Refused:",
        "",
    ]
    lines += table(("keyword", "instead"), [(code(k), note) for k, note in REFUSED.items()])
    tag = StructuralTag({}, 0)
    lines += ["", "## Structural tags", "", "Formats: " + ", ".join(map(code, tag.formats)) + "."]
    lines += [
        "`json_schema` takes `max_whitespace_cnt` (0 is compact). A tag whose content is `any_text` ends at the first"
    ]
    lines += ["of its ends. With `at_least_one` the first tag comes at once, without text before it.", ""]
    lines += ["## Limits", "", *table(("what", "at most"), _limits()), "", _BACKENDS]
    return "\n".join(lines)


def _limits() -> list[tuple[str, str]]:
    shortest, literal = schema_size.MAX_SHORTEST_CHARS, schema_check.MAX_LITERAL_CHARS
    return [
        ("characters of a grammar", f"{MAX_SOURCE_CHARS:,}"),
        ("characters of a regex", f"{regex_check.MAX_CHARS:,}"),
        ("characters of the shortest text of a regex, schema or rule, or of a part of it", f"{shortest:,}"),
        ("subschemas; depth", f"{schema_check.MAX_SCHEMAS:,}; {schema_check.MAX_DEPTH}"),
        ("values of all `enum`; characters of one string", f"{schema_check.MAX_ENUM_VALUES:,}; {literal:,}"),
        ("optional properties of an object", f"{schema_check.MAX_OPTIONAL:,}"),
        ("choices", f"{sources.MAX_CHOICES:,}"),
        ("a counted repetition in EBNF", f"{ebnf_parse.MAX_REPEAT:,}"),
    ]
