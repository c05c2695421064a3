"""What a generation must look like: the grammar of a request, as data.

The gateway and the tokenizer make it, the scheduler compiles and enforces it. Knows no grammar library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.errors import InvalidRequest

GrammarKind = Literal["json_object", "json_schema", "regex", "ebnf", "choice", "structural_tag"]
MAX_SOURCE_CHARS = 256 * 1024


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """One grammar. Equal specs are compiled once."""

    kind: GrammarKind
    source: str = ""
    """json_schema, structural_tag: a JSON object; choice: a JSON array of strings; regex, ebnf: the text itself;
    json_object: empty."""
    max_whitespace: int = 0
    """Most whitespace characters between two tokens of JSON; 0 = compact, which makes the longest forced runs."""
    jump_forward: bool = True
    """Append runs that the grammar forces instead of sampling them."""

    def check(self) -> None:
        """Reject what no grammar can be.

        Raises:
            InvalidRequest: naming the field.
        """
        if len(self.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(
                f"the {self.kind} has {len(self.source):,} characters, the limit is {MAX_SOURCE_CHARS:,}",
                param=self.kind,
            )
        if (self.kind == "json_object") != (self.source == ""):
            raise InvalidRequest(f"{self.kind}: the text of the grammar is missing or too much", param=self.kind)
        if "\x00" in self.source:
            raise InvalidRequest(f"{self.kind} contains a NUL character: take it out", param=self.kind)
        if not self.source.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in self.source):
            raise InvalidRequest(f"{self.kind} contains half a character (a lone surrogate)", param=self.kind)
        if not 0 <= self.max_whitespace <= 64:
            raise InvalidRequest(f"max_whitespace is 0 to 64, got {self.max_whitespace}", param="max_whitespace")
