"""Writing regular expressions from texts and characters, so that no character means anything else."""

from __future__ import annotations

from collections.abc import Iterable


def escaped(text: str) -> str:
    """`text` as an expression that matches nothing else; also safe between the slashes of a Lark terminal."""
    return "".join(map(char, map(ord, text)))


def char(code: int) -> str:
    """One character."""
    text = chr(code)
    return text if text.isascii() and text.isalnum() else f"\\x{{{code:X}}}"


def char_class(ranges: Iterable[tuple[int, int]]) -> str:
    """A class of ranges of code points, both ends included."""
    return "[" + "".join(f"\\x{{{low:X}}}-\\x{{{high:X}}}" for low, high in ranges) + "]"


def counted(least: int, most: int | None) -> str:
    """The sign of a repetition."""
    match least, most:
        case 0, None:
            return "*"
        case 1, None:
            return "+"
        case 0, 1:
            return "?"
    return f"{{{least},{'' if most is None else most}}}"


def lark_regex(pattern: str) -> str:
    r"""A user's expression as it stands between the slashes of a Lark terminal; `\d` means 0 to 9."""
    from llguidance import regex_to_lark

    return regex_to_lark(pattern, "d")
