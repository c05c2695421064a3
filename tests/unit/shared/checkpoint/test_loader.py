"""A checkpoint that belongs to several models: each loads its own, and what is nobody's is complained of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.checkpoint.checkpoint_names import of_vision
from shared.checkpoint.loader import load_checkpoint, tensor_names
from shared.checkpoint.target import whole
from shared.errors import ConfigError
from shared.log import setup

LOG = setup("test", "error")
TENSORS = {
    "model.norm.weight": torch.full((3,), 1.0),
    "visual.merger.norm.weight": torch.full((3,), 2.0),
    "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(3),
}


def test_the_language_model_and_the_encoder_load_their_own_tensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    text, vision = torch.zeros(3), torch.zeros(3)
    load_checkpoint(tmp_path, {"norm.weight": whole(text)}, tied=False, log=LOG)
    load_checkpoint(
        tmp_path,
        {"visual.merger.norm.weight": whole(vision)},
        tied=False,
        log=LOG,
        skip=lambda name: not of_vision(name),
    )
    assert (text.tolist(), vision.tolist()) == ([1.0] * 3, [2.0] * 3)


def test_a_tensor_that_is_nobodys_is_named(tmp_path: Path) -> None:
    save_file(TENSORS | {"model.audio.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"1 tensors are unexpected: audio\.weight"):
        load_checkpoint(tmp_path, {"norm.weight": whole(torch.zeros(3))}, tied=False, log=LOG)


def test_names_of_tensors_are_canonical(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert tensor_names(tmp_path) == {
        "norm.weight", "visual.merger.norm.weight", "vision_tower.embeddings.position_ids",
    }  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        tensor_names(tmp_path)
