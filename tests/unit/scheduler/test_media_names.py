"""Images' names in the radix cache: one each, negative, never the same for two."""

from __future__ import annotations

import numpy as np

from services.scheduler.media_names import MediaNames
from shared import messages as m


def span(start: int, tokens: int, image: int, offset: int = 0) -> m.MediaSpan:
    return m.MediaSpan(start, tokens, m.EmbeddingRef(f"{image:032x}", "v", "/x", 50, 4, "float32"), offset)


def name_of(names: MediaNames, image: int) -> int:
    return int(names.key_ids(np.zeros(1, np.int32), [span(0, 1, image)])[0])


def test_words_stay_and_every_token_of_an_image_gets_its_name() -> None:
    names, prompt = MediaNames(), np.array([5, 9, 9, 6, 9, 7], np.int32)
    ids = names.key_ids(prompt, [span(1, 2, 1), span(4, 1, 2)])
    assert ids.tolist() == [5, name_of(names, 1), name_of(names, 1), 6, name_of(names, 2), 7]
    assert prompt.tolist() == [5, 9, 9, 6, 9, 7]  # the model's ids are not touched


def test_a_prompt_of_words_is_not_even_copied() -> None:
    prompt = np.array([5, 6], np.int32)
    assert MediaNames().key_ids(prompt, []) is prompt


def test_names_are_negative_and_never_the_one_that_means_none() -> None:
    names = MediaNames()
    given = [name_of(names, image) for image in range(100)]
    assert len(set(given)) == 100
    assert max(given) < -1


def test_the_same_image_keeps_its_name_wherever_it_is() -> None:
    names = MediaNames()
    first = names.key_ids(np.zeros(4, np.int32), [span(0, 2, 7), span(2, 2, 7, offset=2)])
    assert len(set(first.tolist())) == 1
    assert name_of(names, 7) == first[0]


def test_a_forgotten_image_gets_a_new_name_that_nobody_had() -> None:
    names = MediaNames(max_names=2)
    first, second = name_of(names, 1), name_of(names, 2)
    assert name_of(names, 1) == first  # and is the most recently used one now
    third = name_of(names, 3)
    assert name_of(names, 1) == first
    again = name_of(names, 2)
    assert len({first, second, third, again}) == 4


def test_images_of_one_prompt_have_different_names_even_if_not_all_can_be_remembered() -> None:
    names = MediaNames(max_names=2)
    ids = names.key_ids(np.zeros(5, np.int32), [span(i, 1, i) for i in range(5)])
    assert len(set(ids.tolist())) == 5
