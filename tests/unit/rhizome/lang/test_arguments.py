"""What a program's arguments may be called, and which value wins."""

from __future__ import annotations

import pytest

import rhizome as rz


@rz.function
def echo(s, x, y="-"):
    s += f"{x}{y}"


@pytest.mark.parametrize("name", ["stream", "backend", "record"])
def test_an_argument_called_like_a_keyword_of_run_is_refused_at_decoration(name: str) -> None:
    names: dict = {}
    exec(f"def program(s, {name}): ...", names)
    with pytest.raises(rz.LanguageError, match=f"{name}= is a keyword of run: rename"):
        rz.function(names["program"])


def test_a_value_given_twice_is_an_error_and_a_call_overrides_bind() -> None:
    backend = rz.FakeBackend([])
    with pytest.raises(rz.LanguageError, match="multiple values for argument 'x'"):
        echo.run(1, x=2, backend=backend)
    bound = echo.bind(x=1)
    assert bound.run(backend=backend).text() == "1-"
    assert bound.run(x=2, backend=backend).text() == "2-"
    assert [s.text() for s in bound.run_batch([{"x": 3}, {"y": "!"}], backend=backend)] == ["3-", "1!"]


def test_a_batch_entry_is_a_dict_a_list_or_a_tuple() -> None:
    backend = rz.FakeBackend([])
    with pytest.raises(rz.LanguageError, match="batch entry 0 is 'hi'"):
        echo.run_batch(["hi"], backend=backend)
    assert [s.text() for s in echo.run_batch([["h", "i"], ("a",)], backend=backend)] == ["hi", "a-"]


def test_no_choices_are_an_error_of_gen_too() -> None:
    with pytest.raises(rz.LanguageError, match="select needs choices"):
        rz.gen("a", choices=[])
