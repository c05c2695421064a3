"""Stop strings: where the text is cut, and what is held back meanwhile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.stop_strings import StopStrings


def scan(stops: list[str], chunks: list[str], *, include: bool = False) -> tuple[list[str], str | None]:
    scanner = StopStrings(stops, include_in_output=include)
    shown = []
    for chunk in chunks:
        shown.append(scanner.add(chunk))
        if scanner.matched is not None:
            return shown, scanner.matched
    return [*shown, scanner.finish()], None


def test_text_without_any_beginning_of_a_stop_string_is_shown_at_once() -> None:
    assert scan(["END"], ["hello ", "world"]) == (["hello ", "world", ""], None)


def test_a_stop_string_split_over_two_chunks_is_held_back_and_cut() -> None:
    assert scan(["END"], ["abcE", "NDx"]) == (["abc", ""], "END")


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    assert scan(["END"], ["aEN", "Eb"]) == (["a", "ENEb", ""], None)


def test_a_stop_string_can_stay_in_the_text() -> None:
    assert scan(["END"], ["abcE", "NDx"], include=True) == (["abc", "END"], "END")


def test_of_several_matches_the_one_that_is_complete_first_wins() -> None:
    assert scan(["long stop", "on"], ["a long stop"]) == (["a l"], "on")


def test_of_matches_that_end_together_the_longest_wins() -> None:
    assert scan(["c", "bc"], ["abcd"]) == (["a"], "bc")


def test_held_text_comes_out_when_the_stream_ends() -> None:
    assert scan(["END"], ["abEN"]) == (["ab", "EN"], None)


def test_a_self_overlapping_stop_string_is_found_at_its_first_occurrence() -> None:
    assert scan(["aab"], ["a", "a", "a", "b", "c"]) == (["", "", "a", ""], "aab")


def cut_by_definition(stops: list[str], text: str) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    chunks=st.lists(st.text("abc", max_size=4), max_size=12),
)
@settings(max_examples=400, deadline=None)
def test_any_split_cuts_where_the_definition_says_and_holds_no_more_than_needed(
    stops: list[str], chunks: list[str]
) -> None:
    shown, matched = scan(stops, chunks)
    assert ("".join(shown), matched) == cut_by_definition(stops, "".join(chunks))
    seen = out = ""
    for chunk, piece in zip(chunks, shown, strict=False):
        seen, out = seen + chunk, out + piece
        held = seen[len(out) :]
        if matched is None:
            assert held == "" or any(s.startswith(held) for s in stops)
