from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.vision.local_file import read_allowed
from shared.errors import InvalidRequest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a b.png").write_bytes(b"pixels")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "inside-too").mkdir()
    (tmp_path / "inside-too" / "x").write_bytes(b"secret")
    return inside.resolve()


def test_a_file_in_an_allowed_folder_is_read(folder: Path) -> None:
    for url in (f"file://{folder}/a%20b.png", f"file://localhost{folder}/../inside/a%20b.png"):
        assert read_allowed(url, [folder], 100) == b"pixels"


def test_a_link_inside_is_followed_inside_only(folder: Path) -> None:
    (folder / "good").symlink_to(folder / "a b.png")
    (folder / "bad").symlink_to(folder.parent / "secret")
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    assert read_allowed(f"file://{folder}/good", [folder], 100) == b"pixels"
    for name in ("bad", "up/secret", "loop"):
        with pytest.raises(InvalidRequest):
            read_allowed(f"file://{folder}/{name}", [folder], 100)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "{}/../secret", "{}/%2e%2e/secret", "{}-too/x", "{}/../inside-too/x", "/"]
)
def test_whatever_is_outside_is_refused_alike_there_or_not(folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="not in a folder that --allowed-media-folder names"):
        read_allowed("file://" + name.format(folder), [folder], 100)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file://{}/absent", "No such file"),
        ("file://{}/", "Is a directory"),
        ("file://host{}/a%20b.png", "must look like"),
        ("file://{}/a%00b", "must look like"),
        ("file:", "must look like"),
        ("file://{}/a%20b.png?x", "must look like"),
    ],
)
def test_other_wrong_urls_say_why(folder: Path, url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read_allowed(url.format(folder), [folder], 100)


def test_a_pipe_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidRequest, match="no regular file"):
        read_allowed(f"file://{folder}/pipe", [folder], 100)


def test_a_large_file_is_refused_and_nothing_is_allowed_by_default(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="over the limit of 5"):
        read_allowed(f"file://{folder}/a%20b.png", [folder], 5)
    with pytest.raises(InvalidRequest, match="--allowed-media-folder"):
        read_allowed(f"file://{folder}/a%20b.png", [], 100)
