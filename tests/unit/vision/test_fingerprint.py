from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from services.vision.fingerprint import media_key, model_fingerprint
from shared.messages import MediaSource

IMAGE = MediaSource("http://example.com/a.png")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1_000_000))
    return folder


def test_a_copy_of_a_model_on_another_host_has_the_same_fingerprint(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    assert model_fingerprint(model, "float32") == model_fingerprint(tmp_path / "copy", "float32")


def test_whatever_changes_embeddings_changes_the_fingerprint(model: Path) -> None:
    seen = {model_fingerprint(model, "float32"), model_fingerprint(model, "bfloat16")}
    (model / "preprocessor_config.json").write_text('{"size": 3}')
    seen.add(model_fingerprint(model, "float32"))
    weights = bytearray(1_000_000)
    weights[500_001] = 1
    (model / "model.safetensors").write_bytes(weights)
    seen.add(model_fingerprint(model, "float32"))
    (model / "model.safetensors").write_bytes(weights + b"x")
    seen.add(model_fingerprint(model, "float32"))
    assert len(seen) == 5


def test_a_key_depends_on_content_and_wishes_and_not_on_the_address() -> None:
    key = media_key(b"pixels", IMAGE, "model")
    assert len(key) == 32
    assert media_key(b"pixels", dataclasses.replace(IMAGE, url="data:x", param="y"), "model") == key
    others = [
        media_key(b"pixel", IMAGE, "model"),
        media_key(b"pixels", IMAGE, "other"),
        *(
            media_key(b"pixels", dataclasses.replace(IMAGE, **change), "model")
            for change in ({"kind": "video"}, {"detail": "low"}, {"fps": 1.0}, {"max_frames": 4})
        ),
    ]
    assert len({key, *others}) == 7
