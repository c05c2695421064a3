"""Regular expressions of every common feature, and their judge: `regex`, whose Unicode is as new as the engine's."""

from __future__ import annotations

import regex

REGEXES = [
    r"abc", r"a|b|cd", r"[a-z]+", r"\d{3}-\d{4}", r"(foo|bar)*baz", r"a?b?c?d", r"[^a-z]{2,5}", r".{0,20}", r".+",
    r"(?:ab)+", r"x{3}", r"x{2,}", r"x{0,4}y", r"\w+@\w+\.(com|org)", r"(\+|-)?\d+(\.\d+)?",
    r"[A-Z][a-z]*( [A-Z][a-z]*)*",
    r"\s*\S+\s*", r"\D\d\D", r"\W\w", r"[\w.-]+", r"[]a]+", r"[a\]]+", r"[\\/]+", r"/path/[a-z]+/", r"a\/b",
    r"\.\*\+\?",
    r"\(\[\{\}\]\)", r"\$\d+", r"é+ñ", r"[à-ü]{1,3}", r"日本(語|人)", r"[一-龥]{2}", r"😀|😃", r"\x41\x42", r"\t\n\r?",
    r"^abc$", r"^(yes|no)$", r"(a|aa)+b", r"((a*)*)*b", r"(a+)+b", r"(a|b)*abb", r"(.*)(\d+)(.*)", r"[01]{8}",
    r"#[0-9a-fA-F]{6}",
    r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)", r"\d{4}-(0[1-9]|1[0-2])-([0-2]\d|3[01])",
    r"(Monday|Tuesday|Wednesday)", r"(?i:hello)", r"(?s:.){1,5}", r"(?P<year>\d{4})", r"a+?b*?", r"|a", r"(|b)c",
    r"[^\x00-\x7f]+", r"[\s\S]{1,6}", r"\"[^\"\\]*\"", r"'([^'\\]|\\.)*'", r"[-a]+", r"[a-]+", r"[+-]?(0|[1-9]\d*)",
    r"<(b|i)>[^<]*</(b|i)>", r"(ab|cd){2,3}", r"[\d\-]{3}", r"Q: .{1,30}\nA: (yes|no)", r"(\w{1,5}\s){1,5}",
    r"https?://[a-z]+(\.[a-z]+)*(/\w*)*",
]  # fmt: skip


def fits(pattern: str, text: str) -> bool:
    r"""Whether the whole text matches, with \d as 0 to 9."""
    ascii_digits = pattern.replace(r"\d", "0-9" if r"[\d" in pattern else "[0-9]").replace(r"\D", "[^0-9]")
    return regex.fullmatch(ascii_digits, text) is not None
