from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from shared import embedding_file
from shared.errors import MediaLost, Unavailable
from shared.messages import EmbeddingRef, EncodedMedia

KEY = "0123456789abcdef0123456789abcdef"
REF = EmbeddingRef(key=KEY, vision_id="vision-0-aaaaaa", path="", tokens=6, width=4, dtype="bfloat16")
IMAGE = EncodedMedia("image", REF, grid=[1, 2, 3])
ROWS = bytes(range(48))


def test_rows_come_back_as_they_were_written_together_with_their_description(tmp_path: Path) -> None:
    ref = embedding_file.write(tmp_path, IMAGE, ROWS)
    assert ref == dataclasses.replace(REF, path=str(tmp_path / f"{KEY}.emb"))
    assert embedding_file.read_header(Path(ref.path)) == dataclasses.replace(IMAGE, ref=ref)
    rows = embedding_file.map_rows(ref)
    assert rows.dtype == np.uint8
    assert rows.shape == (6, 8)
    assert rows.tobytes() == ROWS
    assert not rows.flags.writeable


def test_rows_start_on_a_page_also_after_the_long_header_of_a_long_video(tmp_path: Path) -> None:
    video = dataclasses.replace(IMAGE, kind="video", timestamps_s=[i / 7 for i in range(2000)])
    ref = embedding_file.write(tmp_path, video, ROWS)
    assert Path(ref.path).stat().st_size % 4096 == len(ROWS)
    assert embedding_file.read_header(Path(ref.path)).timestamps_s == video.timestamps_s
    assert embedding_file.map_rows(ref).tobytes() == ROWS


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    ref = embedding_file.write(tmp_path, IMAGE, ROWS)
    rows = embedding_file.map_rows(ref)
    Path(ref.path).unlink()
    assert rows.tobytes() == ROWS
    with pytest.raises(MediaLost, match="no embeddings"):
        embedding_file.map_rows(ref)


def test_the_bytes_of_a_file_can_be_read_without_one(tmp_path: Path) -> None:
    ref = embedding_file.write(tmp_path, IMAGE, ROWS)
    assert embedding_file.rows_in(Path(ref.path).read_bytes(), ref).tobytes() == ROWS


@pytest.mark.parametrize("change", [{"key": "f" * 32}, {"tokens": 3}, {"width": 8}, {"dtype": "float32"}])
def test_a_file_that_holds_something_else_counts_as_lost(tmp_path: Path, change: dict[str, object]) -> None:
    ref = embedding_file.write(tmp_path, IMAGE, ROWS)
    with pytest.raises(MediaLost, match="not of"):
        embedding_file.map_rows(dataclasses.replace(ref, **change))


@pytest.mark.parametrize("damage", [b"", b"RZ", b"x" * 5000, b"RZEMB1\0\0" + b"\xff" * 8, b"RZEMB1\0\0" + b"\0" * 99])
def test_a_damaged_file_counts_as_lost(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / f"{KEY}.emb"
    path.write_bytes(damage)
    with pytest.raises(MediaLost):
        embedding_file.read_header(path)
    with pytest.raises(MediaLost):
        embedding_file.map_rows(dataclasses.replace(REF, path=str(path)))


def test_a_file_cut_short_counts_as_lost(tmp_path: Path) -> None:
    ref = embedding_file.write(tmp_path, IMAGE, ROWS)
    path = Path(ref.path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MediaLost, match="not complete"):
        embedding_file.read_header(path)
    with pytest.raises(MediaLost, match="not complete"):
        embedding_file.map_rows(ref)


def test_a_folder_that_cannot_be_written_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="--shared-memory-dir"):
        embedding_file.write(tmp_path / "absent", IMAGE, ROWS)


def test_nothing_but_the_file_is_left_in_the_folder(tmp_path: Path) -> None:
    embedding_file.write(tmp_path, IMAGE, ROWS)
    embedding_file.write(tmp_path, IMAGE, ROWS)
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.emb"]
    assert abs(embedding_file.file_bytes(IMAGE) - (tmp_path / f"{KEY}.emb").stat().st_size) == 0
