"""The error tree and its way over the bus."""

from __future__ import annotations

import pytest

from shared import errors
from shared.errors import RhizomeError, from_code


def tree(cls: type[RhizomeError] = RhizomeError) -> list[type[RhizomeError]]:
    """The errors that may travel; a service may have subclasses of its own, which travel as their base."""
    here = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return [cls, *(c for sub in here for c in tree(sub))]


@pytest.mark.parametrize("cls", tree(), ids=lambda c: c.__name__)
def test_every_error_comes_back_from_its_code(cls: type[RhizomeError]) -> None:
    fault = from_code(cls.code, "too hot: lower it", "temperature")
    assert type(fault) is cls
    assert (fault.message, str(fault), fault.param) == ("too hot: lower it", "too hot: lower it", "temperature")


def test_codes_are_unique_and_published() -> None:
    codes = [c.code for c in tree()]
    assert len(set(codes)) == len(codes)
    assert set(codes) == {
        "internal_error", "invalid_request", "context_length_exceeded", "invalid_api_key", "not_found", "too_large",
        "overloaded", "unavailable", "media_lost", "deadline_exceeded", "aborted", "config_error", "bad_message",
    }  # fmt: skip


def test_an_unknown_code_becomes_the_base_error() -> None:
    assert type(from_code("from_the_future", "x")) is errors.RhizomeError
