"""How a batch is cut."""

from __future__ import annotations

from services.vision.models.encoder import Part, chunks

SIZES = [(3, 10), (1, 100), (7, 6), (1, 1), (2, 50)]


def test_chunks_are_never_larger_than_asked_but_for_a_single_unit() -> None:
    for chunk in chunks(SIZES, 50):
        patches = sum(part.count * SIZES[part.item][1] for part in chunk)
        assert patches <= 50 or (len(chunk) == 1 and chunk[0].count == 1)


def test_every_unit_is_computed_once_and_in_order() -> None:
    units = [
        (part.item, unit)
        for chunk in chunks(SIZES, 50)
        for part in chunk
        for unit in range(part.start, part.start + part.count)
    ]
    assert units == [(item, unit) for item, (count, _) in enumerate(SIZES) for unit in range(count)]


def test_what_fits_is_one_chunk() -> None:
    assert list(chunks([(2, 10), (1, 30)], 50)) == [[Part(0, 0, 2), Part(1, 0, 1)]]
    assert list(chunks([], 50)) == []
