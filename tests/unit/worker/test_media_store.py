"""Embeddings at a rank: staged from bytes, kept per session, taken by plans, dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.worker.media_store import MediaStore
from shared.errors import MediaLost

WIDTH = 4
CPU = torch.device("cpu")


def store(dtype: torch.dtype = torch.float32) -> MediaStore:
    return MediaStore(WIDTH, dtype, CPU)


def rows(tokens: int, first: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[np.ndarray, torch.Tensor]:
    """Bytes as they lie in a file, and the numbers they are."""
    numbers = (torch.arange(tokens * WIDTH, dtype=torch.float32) / 8 + first).view(tokens, WIDTH).to(dtype)
    return numbers.view(torch.uint8).numpy().copy(), numbers


def runs(*entries: list[int]) -> np.ndarray:
    return np.array(entries, np.int64).reshape(-1, 4)


def at(count: int) -> torch.Tensor:
    return torch.arange(count)


def test_a_plan_takes_rows_of_several_images_in_its_own_order() -> None:
    media = store()
    (first, a), (second, b) = rows(3), rows(5, 100.0)
    media.stage("s", 0, first, "float32")
    media.stage("s", 7, second, "float32")
    taken = media.take("s", runs([0, 2, 7, 3], [2, 3, 0, 0], [5, 1, 7, 0]), at(6))
    assert taken is not None
    torch.testing.assert_close(taken.rows, torch.cat((b[3:5], a, b[:1])), rtol=0, atol=0)
    assert taken.at.tolist() == list(range(6))
    alone = media.take("s", runs([4, 2, 0, 1]), at(2))
    assert alone is not None
    torch.testing.assert_close(alone.rows, a[1:3], rtol=0, atol=0)


def test_a_plan_without_images_takes_nothing() -> None:
    assert store().take("s", runs(), at(0)) is None


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", ["float32", "bfloat16", "float16"])
def test_numbers_become_those_of_the_model(given: str, kept: torch.dtype) -> None:
    media = store(kept)
    data, numbers = rows(2, dtype=getattr(torch, given))
    media.stage("s", 0, data, given)
    taken = media.take("s", runs([0, 2, 0, 0]), at(2))
    assert taken is not None
    torch.testing.assert_close(taken.rows, numbers.to(kept), rtol=0, atol=0)


def test_what_was_staged_does_not_change_with_the_file() -> None:
    """Vision may remove and reuse what a rank has copied."""
    media = store()
    data, numbers = rows(2)
    media.stage("s", 0, data, "float32")
    data[:] = 0
    taken = media.take("s", runs([0, 2, 0, 0]), at(2))
    assert taken is not None
    torch.testing.assert_close(taken.rows, numbers, rtol=0, atol=0)


def test_a_read_only_map_of_a_file_is_taken() -> None:
    data, _ = rows(2)
    data.flags.writeable = False
    media = store()
    media.stage("s", 0, data, "float32")
    assert media.has("s", 0)


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(WIDTH * 4 + 4, "float32"), (WIDTH * 2, "float32"), (WIDTH * 4, "bfloat16"), (WIDTH * 4, "no_such"),
     (WIDTH * 4, "nn"), (WIDTH * 4, "")],
)  # fmt: skip
def test_embeddings_of_another_model_are_as_good_as_lost(width: int, dtype: str) -> None:
    media = store()
    with pytest.raises(MediaLost, match=f"{width} bytes in {dtype}, the model takes 4 numbers"):
        media.stage("s", 0, np.zeros((2, width), np.uint8), dtype)
    assert not media.has("s", 0)


def test_slots_are_told_with_their_tokens_until_they_are_dropped() -> None:
    media = store()
    media.stage("s", 0, rows(3)[0], "float32")
    media.stage("s", 4, rows(5)[0], "float32")
    assert dict(media.tokens("s")) == {0: 3, 4: 5}
    media.drop("s", np.array([0, 99], np.int64))
    assert dict(media.tokens("s")) == {4: 5}
    assert (media.has("s", 0), media.has("s", 4)) == (False, True)
    media.drop("unknown", np.array([4], np.int64))


def test_sessions_have_their_own_slots_and_the_next_may_begin_before_the_last_plan() -> None:
    media = store()
    media.begin("a")
    media.stage("a", 0, rows(1)[0], "float32")
    media.stage("b", 0, rows(2)[0], "float32")  # its images come before its first plan
    assert (dict(media.tokens("a")), dict(media.tokens("b"))) == ({0: 1}, {0: 2})
    media.begin("b")
    assert media.has("b", 0)
    media.begin("c")
    assert not media.has("a", 0)
    assert media.has("b", 0)


def test_an_unknown_session_has_nothing() -> None:
    media = store()
    assert dict(media.tokens("s")) == {}
    assert not media.has("s", 0)
