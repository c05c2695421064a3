"""Encoders from checkpoints: which tensors are whose, and what is said when they do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.vision.models.registry import load_encoder
from shared.errors import ConfigError
from shared.log import setup
from shared.media_config import load_media_config
from tests.fakes.vlm_checkpoints import FAMILIES
from tests.unit.vision.checkpoints import CPU, checkpoint, encoder, error, media_config, picture, processor

LOG = setup("test", "error")
OTHER_SPELLINGS = {
    "llava": ("vision_tower.", "vision_tower.vision_model."),
    "llava_next": ("", "model."),
    "qwen2_vl": ("visual.", "model.visual."),
    "qwen2_5_vl": ("visual.", "model.visual."),
    "qwen3_vl": ("model.visual.", "visual."),
}


def renamed(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def changed(family: str, folder: Path, change: str) -> Path:
    """A copy of a family's checkpoint whose weights were renamed, or lost or gained one."""
    path = folder / family
    shutil.copytree(checkpoint(family)[0], path)
    weights = load_file(path / "model.safetensors")
    if change == "rename":
        old, new = OTHER_SPELLINGS[family]
        weights = {renamed(name, old, new): weight for name, weight in weights.items()}
    elif change == "lose":
        weights = {name: weight for name, weight in weights.items() if not name.endswith("norm1.weight")}
    else:
        weights["visual.blocks.0.unknown.weight"] = torch.zeros(2)
    save_file(weights, path / "model.safetensors")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_of_names_load(family: str, tmp_path: Path) -> None:
    path = changed(family, tmp_path, "rename")
    item = processor(family).prepare(picture(100, 60))
    config = load_media_config(path)
    assert config is not None
    (ours,) = load_encoder(path, config, torch.float32, CPU, "auto", LOG).encode([item])
    assert torch.equal(ours, encoder(family).encode([item])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_dummy_weights_are_the_same_at_every_start(family: str) -> None:
    item = processor(family).prepare(picture(100, 60))
    first, second = (
        load_encoder("no/such/folder", media_config(family), torch.float32, CPU, "dummy", LOG).encode([item])[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert error(first, encoder(family).encode([item])[0]) > 0.1


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = changed("llava", tmp_path, "lose")
    with pytest.raises(ConfigError, match=r"missing: vision_tower\.encoder\.layers\.0\.layer_norm1\.weight"):
        load_encoder(path, media_config("llava"), torch.float32, CPU, "auto", LOG)


def test_a_tensor_that_the_architecture_does_not_have_is_named(tmp_path: Path) -> None:
    path = changed("qwen2_vl", tmp_path, "gain")
    with pytest.raises(ConfigError, match=r"unexpected: visual\.blocks\.0\.unknown\.weight"):
        load_encoder(path, media_config("qwen2_vl"), torch.float32, CPU, "auto", LOG)


def test_a_tower_that_is_nowhere_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(checkpoint("original-beside")[0], path)
    config = media_config("original-beside")
    shutil.rmtree(path / "tower")
    with pytest.raises(ConfigError, match=r"does not contain its vision tower 'tower': download it to .*model/tower"):
        load_encoder(path, config, torch.float32, CPU, "auto", LOG)
