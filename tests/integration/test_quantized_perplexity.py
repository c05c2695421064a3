"""The real small model in its own 4 bits, and rounded to 8 and to 4, finds a text as likely as the weights allow."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from tokenizers import Tokenizer

from rhizome.models import DEFAULT_MODEL
from rhizome.models.resolve import resolve_model
from shared.messages.step import RowInit
from tests.integration.written_text import written_text
from tests.plain_model import plain_model
from tests.unit.worker.driver import Driver, Extend, make_engine
from tests.unit.worker.quantization.calibrated import calibrated
from tests.unit.worker.quantization.checkpoints import quantized_checkpoint, rounded_checkpoint

TEXT = (
    "A river begins as many small streams high in the mountains, where snow melts in spring and rain falls for much of "
    "the year. The streams join each other in the valleys and grow into a river that carries stones, sand and mud "
    "toward the sea. Where the land is steep the water runs fast and cuts deep into the rock. Where the land is flat "
    "the river slows down, bends from side to side and leaves behind what it carried. People have always lived near "
    "rivers, because they give water for fields and animals, power for mills and a way to travel. Many of the first "
    "cities in the world were built on the banks of large rivers such as the Nile, the Tigris and the Indus. Today "
    "dams hold back the water of many rivers to make electricity and to keep the land below safe from floods. A dam "
    "also changes the river: fish can no longer reach the places where they lay their eggs, and the mud that once made "
    "the fields rich stays behind the wall. Engineers now try to build dams that let fish and mud pass."
)

PIECES = 24
"""Of the written text, to calibrate with; settings were chosen on others."""
HELP = 4_000
"""Characters of the end of Python's own help."""


def tokens_of(path: Path, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    return ids


def perplexity(path: Path, text: str = TEXT) -> float:
    ids = tokens_of(path, text)
    driver = Driver(make_engine(path))
    result = driver.run([Extend(0, ids, lp_start=0)], new=[RowInit(0, temperature=0.0, return_logprob=True)])
    assert len(result.prompt_logprobs) == len(ids) - 1
    return float(np.exp(-np.mean(result.prompt_logprobs)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = plain_model(resolve_model(DEFAULT_MODEL, print), tmp_path_factory.mktemp("plain") / "model")
    found = perplexity(folder)
    assert 2 < found < 40  # it knows English, somewhat
    return folder, found


def test_the_default_model_is_as_good_in_its_own_bits_as_expanded(plain: tuple[Path, float]) -> None:
    assert perplexity(resolve_model(DEFAULT_MODEL, print)) == pytest.approx(plain[1], rel=1e-4)


def test_eight_bits_cost_little(plain: tuple[Path, float], tmp_path: Path) -> None:
    folder, exact = plain
    quantized_checkpoint(folder, "compressed-tensors int8", tmp_path / "quantized", tmp_path / "meant")
    assert perplexity(tmp_path / "quantized") == pytest.approx(exact, rel=0.02)


def test_four_bits_cost_what_their_rounding_costs(plain: tuple[Path, float], tmp_path: Path) -> None:
    """To the nearest, without looking at activations, that is a fifth for so small a model; nothing is to be added."""
    quantized_checkpoint(plain[0], "awq 32", tmp_path / "quantized", tmp_path / "meant")
    rounded = perplexity(tmp_path / "quantized")
    assert rounded == pytest.approx(perplexity(tmp_path / "meant"), rel=1e-3)
    assert rounded == pytest.approx(plain[1], rel=0.3)


def test_four_bits_that_were_calibrated_cost_little(plain: tuple[Path, float], tmp_path: Path) -> None:
    """A GPTQ checkpoint, calibrated with what the model wrote itself and asked about two texts of unlike kinds."""
    folder = plain[0]
    rounded_checkpoint(
        folder, calibrated(folder, written_text()[:PIECES], 32), tmp_path / "quantized", tmp_path / "meant"
    )
    found = perplexity(tmp_path / "quantized")
    assert found == pytest.approx(perplexity(tmp_path / "meant"), rel=1e-3)
    assert found == pytest.approx(plain[1], rel=0.08)
    help_text = " ".join(" ".join(topic.split()) for topic in topics.values())[-HELP:]
    assert perplexity(tmp_path / "quantized", help_text) == pytest.approx(perplexity(folder, help_text), rel=0.08)
