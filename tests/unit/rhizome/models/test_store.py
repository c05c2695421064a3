from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from rhizome.models import store


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RHIZOME_HOME", str(tmp_path))
    return tmp_path


def fill(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")


def silent(_: str) -> None:
    pass


def test_a_model_is_built_once_and_then_found() -> None:
    built = store.build_once("tiny", fill, silent)
    assert built == store.model_dir("tiny")

    def again(_: Path) -> None:
        raise AssertionError("built twice")

    assert store.build_once("tiny", again, silent) == built


def test_a_failed_build_leaves_nothing_that_looks_done(own_home: Path) -> None:
    def half(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.build_once("tiny", half, silent)
    assert not store.model_dir("tiny").exists()
    assert [path.name for path in (own_home / "models").iterdir()] == ["2"]
    assert [path.name for path in store.model_dir("tiny").parent.iterdir()] == [".tiny.lock"]
    store.build_once("tiny", fill, silent)
    assert store.is_complete(store.model_dir("tiny"))


def test_a_shard_named_by_the_index_but_absent_makes_it_incomplete(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert not store.is_complete(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert store.is_complete(tmp_path)


def _launch(counter: Path, start: object) -> None:
    def build(folder: Path) -> None:
        with counter.open("a") as out:
            out.write("built\n")
        fill(folder)

    start.wait()  # type: ignore[attr-defined]
    store.build_once("tiny", build, silent)


def test_two_launches_at_once_build_it_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start, counter = fork.Barrier(4), tmp_path / "counter"
    launches = [fork.Process(target=_launch, args=(counter, start)) for _ in range(4)]
    for launch in launches:
        launch.start()
    for launch in launches:
        launch.join(30)
    assert [launch.exitcode for launch in launches] == [0, 0, 0, 0]
    assert counter.read_text() == "built\n"
