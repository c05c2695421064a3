from __future__ import annotations

from pathlib import Path

import pytest

from services.vision.config import VisionConfig
from shared.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"max_media_bytes": 0}, "--max-media-bytes 0"),
        ({"media_fetch_timeout_s": -1.0}, "--media-fetch-timeout-s"),
        ({"vision_gpu_id": -1}, "--vision-gpu-id -1"),
        ({"allowed_media_folder": ("/absent",)}, "--allowed-media-folder /absent"),
    ],
)
def test_a_wrong_flag_is_named(change: dict[str, object], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        VisionConfig(model_path="m", **change)


def test_defaults_allow_nothing_local(tmp_path: Path) -> None:
    config = VisionConfig(model_path="m")
    assert config.allowed_media_hosts == config.allowed_media_folder == ()
    assert VisionConfig(model_path="m", allowed_media_folder=(str(tmp_path),)).allowed_media_folder
