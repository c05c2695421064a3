from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rhizome.models import DEFAULT_MODEL, resolve_model, store
from shared.errors import ConfigError

ROOT = Path(__file__).parents[4]


def silent(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def offline_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHIZOME_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    assert resolve_model(str(folder), silent) == folder


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_model(str(tmp_path), silent)


@pytest.mark.parametrize("name", [DEFAULT_MODEL, f"HuggingFaceTB/{DEFAULT_MODEL}"])
def test_the_default_model_comes_from_the_cache_without_any_network(name: str) -> None:
    cached = make_model(store.model_dir(DEFAULT_MODEL))
    said: list[str] = []
    assert resolve_model(name, said.append) == cached
    assert not said


@pytest.mark.parametrize("path", ["./no/such/dir", "/no/such", "model with spaces", "a/b/c"])
def test_what_is_neither_directory_nor_hub_id_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="neither a directory"):
        resolve_model(path, silent)


def test_a_hub_id_that_cannot_be_had_offline_names_both_reasons() -> None:
    program = "from rhizome.models import resolve_model; resolve_model('some-org/some-model', print)"
    # A process of its own: the hub's client reads HF_HUB_OFFLINE when it is imported.
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ConfigError: --model-path some-org/some-model: no such directory, and the hub: " in done.stderr
    assert "offline mode is enabled" in done.stderr
