from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shared.blobs import BLOB_TTL_S, GRACE_S, Blobs
from shared.errors import InvalidRequest, Overloaded, Unavailable
from shared.held_folder import HeldFolder
from shared.objects import LocalObjects

LIMIT = 1000


@pytest.fixture
def objects() -> LocalObjects:
    return LocalObjects()


def blobs_in(path: Path, objects: LocalObjects) -> Blobs:
    return Blobs(HeldFolder(path, alone=False), objects, "default")


def files(folder: Path) -> list[Path]:
    return sorted((folder / "blobs").iterdir())


async def test_a_blob_is_read_by_whoever_sees_the_same_folder(tmp_path: Path, objects: LocalObjects) -> None:
    gateway, vision = blobs_in(tmp_path / "a", objects), blobs_in(tmp_path / "a", objects)
    assert gateway.host == vision.host
    url = await gateway.put(b"pixels", nearby=True)
    assert url.startswith("blob:")
    assert url.endswith(f"?host={vision.host}")
    assert await vision.read(url, LIMIT) == b"pixels"
    assert await vision.read(url, LIMIT) == b"pixels"


async def test_a_blob_for_another_host_goes_through_the_object_store(tmp_path: Path, objects: LocalObjects) -> None:
    gateway, vision = blobs_in(tmp_path / "a", objects), blobs_in(tmp_path / "b", objects)
    near, far = await gateway.put(b"near", nearby=True), await gateway.put(b"far", nearby=False)
    assert far.endswith("?object")
    assert await vision.read(far, LIMIT) == b"far"
    with pytest.raises(Unavailable, match="memory of another host"):
        await vision.read(near, LIMIT)
    await vision.used(near)
    await vision.used(far)


async def test_names_cannot_be_guessed_or_lead_elsewhere(tmp_path: Path, objects: LocalObjects) -> None:
    blobs = blobs_in(tmp_path / "a", objects)
    assert await blobs.put(b"x", nearby=True) != await blobs.put(b"x", nearby=True)
    name = "0" * 32
    for wrong in (
        "blob:", f"blob:{name}", f"blob:../{name}?host={blobs.host}", f"blob:{name[1:]}?object", f"blob:{name}?host=x",
        f"blob:{name}?object&x", f"blob:{name.replace('0', 'G')}?object", "blob:http://example.com/x",
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match="blob"):
            await blobs.read(wrong, LIMIT)
    for absent in (f"blob:{name}?host={blobs.host}", f"blob:{name}?object"):
        with pytest.raises(Unavailable, match="expired"):
            await blobs.read(absent, LIMIT)
        await blobs.used(absent)


@pytest.mark.parametrize("nearby", [True, False])
async def test_more_than_the_reader_takes_is_refused(tmp_path: Path, objects: LocalObjects, nearby: bool) -> None:
    blobs = blobs_in(tmp_path / "a", objects)
    with pytest.raises(InvalidRequest, match="1,001 bytes is over the limit of 1,000"):
        await blobs.read(await blobs.put(b"x" * 1001, nearby=nearby), LIMIT)


async def test_a_sweep_removes_what_has_expired_and_leaves_the_rest(tmp_path: Path, objects: LocalObjects) -> None:
    blobs = blobs_in(tmp_path / "a", objects)
    assert await blobs.sweep() == 0
    old, young = await blobs.put(b"old", nearby=True), await blobs.put(b"young", nearby=True)
    past_s = time.time() - BLOB_TTL_S - 1
    half = tmp_path / "a" / "blobs" / ".half"
    half.touch()
    for path in files(tmp_path / "a"):
        if path == half or path.read_bytes() == b"old":
            os.utime(path, (past_s, past_s))
    assert await blobs.sweep() == 2
    assert await blobs.read(young, LIMIT) == b"young"
    with pytest.raises(Unavailable):
        await blobs.read(old, LIMIT)


async def test_a_used_blob_has_seconds_left_and_never_gains_any(tmp_path: Path, objects: LocalObjects) -> None:
    blobs = blobs_in(tmp_path / "a", objects)
    url = await blobs.put(b"x", nearby=True)
    await blobs.used(url)
    (path,) = files(tmp_path / "a")
    left_s = path.stat().st_mtime + BLOB_TTL_S - time.time()
    assert left_s <= GRACE_S
    assert await blobs.read(url, LIMIT) == b"x"
    os.utime(path, (1, 1))
    await blobs.used(url)
    assert path.stat().st_mtime == 1


async def test_full_memory_is_overloaded_and_takes_nothing(
    tmp_path: Path, objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = blobs_in(tmp_path / "a", objects)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100, "total": 1000}))
    with pytest.raises(Overloaded, match="no shared memory"):
        await blobs.put(b"x" * 50, nearby=True)
    assert not files(tmp_path / "a")
