"""Prompts with images, from pixels to tokens, against transformers: processing, encoder, placeholders, positions, the
language model's forward and its decoding.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from services.tokenizer.media.expansion import Expansion, MediaPrompt
from services.tokenizer.media.placeholders import placeholders_of
from shared import messages as m
from shared.messages.step import RowInit
from shared.vocabulary import load_vocabulary
from tests.fakes.vlm_checkpoints import FAMILIES, TOKEN_IDS, VOCAB_SIZE
from tests.unit.vision.checkpoints import checkpoint, encoder, media_config, picture, processor
from tests.unit.worker.driver import Driver, Extend, i32, make_engine

COUNT = 6
"""Tokens that are generated."""
CASES: dict[str, list[str | tuple[int, int]]] = {
    "one image": ["Look: ", (100, 80), " What is it?"],
    "three images": ["a", (56, 56), "b", (120, 37), "c", (300, 200), "d"],
    "odd sizes": ["Compare ", (37, 91), " and ", (29, 203), "."],
    "an extreme aspect ratio": ["Wide: ", (640, 33), "!"],
    "an image first": [(90, 60), "What is it?"],
    "an image last": ["What is it? ", (90, 60)],
    "text only": ["Nothing to see here."],
}
"""Words, and (width, height) of images."""


@functools.cache
def engine(family: str) -> Any:
    return make_engine(checkpoint(family)[0], max_total_tokens=4096)


def prompt_of(family: str, parts: list[str | tuple[int, int]]) -> tuple[MediaPrompt, list[torch.Tensor], list[Any]]:
    """What the engine gets, the embeddings, and the images."""
    config = media_config(family)
    vocabulary = load_vocabulary(checkpoint(family)[0], VOCAB_SIZE)
    placeholders = placeholders_of(config, vocabulary)
    expansion = Expansion(config, placeholders, lambda text: vocabulary.encode(text, add_special_tokens=False))
    text = "".join(part if isinstance(part, str) else placeholders.texts["image"] for part in parts)
    images = [picture(*part, seed=i) for i, part in enumerate(parts) if not isinstance(part, str)]
    prepared = [processor(family).prepare(image) for image in images]
    rows = encoder(family).encode(prepared) if prepared else []
    media = [
        m.EncodedMedia("image", m.EmbeddingRef(f"{i:032x}", "v", "", item.tokens, config.width, "float32"), item.grid)
        for i, item in enumerate(prepared)
    ]
    return expansion.expand(vocabulary.encode(text, add_special_tokens=False), media, "prompt"), rows, images


def theirs(family: str, prompt: MediaPrompt, images: list[Any]) -> tuple[np.ndarray, list[int]]:
    """transformers' log probabilities [tokens, V] of a prompt, and what it generates."""
    path, model = checkpoint(family)
    ids = torch.tensor([prompt.token_ids])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        processed = AutoImageProcessor.from_pretrained(path, backend="pil")(images, return_tensors="pt")
        inputs |= {name: processed[name] for name in processed}
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == TOKEN_IDS["<|image_pad|>"]).int()
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        out = model.generate(**inputs, max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
    return torch.log_softmax(logits, -1).numpy(), out[0, ids.shape[1] :].tolist()


def feed(driver: Driver, prompt: MediaPrompt, rows: list[torch.Tensor], chunk: int) -> tuple[list[float], list[int]]:
    """Our log probabilities of the prompt's tokens from the second on, and what we generate, in chunks of `chunk`."""
    media = driver.engine.media
    for slot, (tensor, _) in enumerate(zip(rows, prompt.spans, strict=True)):
        media.stage(driver.session, slot, tensor.numpy().view(np.uint8).reshape(len(tensor), -1), "float32")
    ids, logprobs = prompt.token_ids, []
    init = RowInit(0, temperature=0.0, position_delta=prompt.position_delta, return_logprob=True, min_new_tokens=COUNT,
                   stop_ids=[TOKEN_IDS["<|im_end|>"]])  # fmt: skip
    tokens: list[int] = []
    for at in range(0, len(ids), chunk):
        piece = ids[at : at + chunk]
        last = at + chunk >= len(ids)
        runs = []
        for slot, span in enumerate(prompt.spans):
            low, high = max(at, span.start), min(at + chunk, span.start + span.tokens)
            if low < high:
                runs.append([low - at, high - low, slot, low - span.start])
        extend = Extend(0, piece, at, last, lp_start=0, next=-1 if last else ids[at + chunk])
        plan = driver.plan([extend], (), [init] if at == 0 else [])
        positions = None if prompt.positions is None else prompt.positions[:, at : at + chunk]
        object.__setattr__(plan, "ext_positions", positions)
        object.__setattr__(plan, "ext_media", i32(runs) if runs else None)
        result = driver.engine.execute(plan)
        assert isinstance(result, m.StepResult), result
        assert result.prompt_logprobs is not None
        logprobs += result.prompt_logprobs.tolist()
        tokens += result.tokens.tolist()
    while len(tokens) < COUNT:
        tokens += driver.run(decode=[0]).tokens.tolist()
    return logprobs, tokens


@pytest.mark.parametrize("chunk", [10_000, 13])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_greedy_tokens_are_those_of_transformers(family: str, case: str, chunk: int) -> None:
    prompt, rows, images = prompt_of(family, CASES[case])
    want, greedy = theirs(family, prompt, images)
    ours, tokens = feed(Driver(engine(family)), prompt, rows, chunk)
    expected = [want[i, token] for i, token in enumerate(prompt.token_ids[1:])]
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    assert tokens == greedy
