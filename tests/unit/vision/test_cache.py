from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from services.vision.cache import EmbeddingCache, budget
from shared import embedding_file
from shared.errors import InvalidRequest, MediaLost, Overloaded
from shared.messages import EmbeddingRef, EncodedMedia

TOKENS, ROW = 1024, 16
SIZE = 4096 + TOKENS * ROW
ROWS = np.zeros((TOKENS, ROW), np.uint8)


def media(number: int, vision_id: str = "vision-0-a") -> EncodedMedia:
    return EncodedMedia("image", EmbeddingRef(f"{number:032x}", vision_id, "", TOKENS, 4, "float32"), [1, 32, 32])


def cache_of(folder: Path, entries: float = 3.5, vision_id: str = "vision-0-a") -> EmbeddingCache:
    return EmbeddingCache(folder, vision_id, int(entries * SIZE))


def keys(folder: Path) -> set[int]:
    return {int(path.stem, 16) for path in folder.glob("*.emb")}


async def test_what_was_put_is_found_and_can_be_mapped(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    done = await cache.put(media(1), ROWS)
    assert cache.get(done.ref.key) == done
    assert embedding_file.map_rows(done.ref).shape == (TOKENS, ROW)
    assert cache.get("f" * 32) is None
    assert cache.used_bytes == SIZE


async def test_the_least_recently_used_go_first_and_the_budget_holds(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    for number in (1, 2, 3):
        await cache.put(media(number), ROWS)
    cache.get(media(1).ref.key)
    await cache.put(media(4), ROWS)
    assert keys(tmp_path) == {1, 3, 4}
    for number in range(5, 30):
        await cache.put(media(number), ROWS)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3.5 * SIZE
    assert keys(tmp_path) == {27, 28, 29}
    assert (len(cache), cache.used_bytes) == (3, 3 * SIZE)


async def test_what_is_pinned_stays_and_all_pinned_means_overloaded(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    for number in (1, 2, 3):
        await cache.put(media(number), ROWS)
    with cache.pinned(media(1).ref.key), cache.pinned(media(2).ref.key), cache.pinned(media(2).ref.key):
        await cache.put(media(4), ROWS)
        assert keys(tmp_path) == {1, 2, 4}
        with cache.pinned(media(4).ref.key), pytest.raises(Overloaded, match="--embedding-cache-bytes"):
            await cache.put(media(5), ROWS)
    await cache.put(media(5), ROWS)
    assert keys(tmp_path) == {2, 4, 5}


async def test_one_that_never_fits_is_the_request_s_fault(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--embedding-cache-bytes"):
        await cache_of(tmp_path, 0.5).put(media(1), ROWS)
    assert not keys(tmp_path)


async def test_the_same_put_twice_counts_once(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    await asyncio.gather(cache.put(media(1), ROWS), cache.put(media(1), ROWS))
    assert (len(cache), cache.used_bytes) == (1, SIZE)


async def test_a_caller_that_is_cancelled_leaves_the_books_right(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    putting = asyncio.ensure_future(cache.put(media(1), ROWS))
    await asyncio.sleep(0)
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
    await cache.put(media(2), ROWS)
    await cache.put(media(1), ROWS)
    assert (len(cache), cache.used_bytes) == (2, 2 * SIZE)


async def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "absent")
    with pytest.raises(Exception, match="cannot be kept"):
        await cache.put(media(1), ROWS)
    assert cache.used_bytes == 0


async def test_an_instance_adopts_what_its_predecessor_left_under_its_own_id(tmp_path: Path) -> None:
    before = cache_of(tmp_path)
    await before.put(media(1), ROWS)
    await before.put(media(2), ROWS)
    (tmp_path / f".{3:032x}.abcd.tmp").write_bytes(b"half")
    (tmp_path / f"{4:032x}.emb").write_bytes(b"damaged")
    (tmp_path / "lock").touch()
    after = cache_of(tmp_path, vision_id="vision-0-b")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{1:032x}.emb", f"{2:032x}.emb", "lock"]
    found = after.get(media(1).ref.key)
    assert found is not None
    assert (found.ref.vision_id, found.grid) == ("vision-0-b", [1, 32, 32])
    assert embedding_file.map_rows(found.ref).shape == (TOKENS, ROW)
    assert after.used_bytes == 2 * SIZE


async def test_a_smaller_budget_adopts_only_the_newest(tmp_path: Path) -> None:
    before = cache_of(tmp_path)
    for number in (1, 2, 3):
        done = await before.put(media(number), ROWS)
        os.utime(done.ref.path, (number, number))
    assert len(cache_of(tmp_path, 2)) == 2
    assert keys(tmp_path) == {2, 3}


def test_a_kill_in_the_middle_of_writing_leaves_only_complete_embeddings(tmp_path: Path) -> None:
    program = (
        "import numpy as np, pathlib, sys\n"
        "from shared import embedding_file\n"
        "from tests.unit.vision.test_cache import ROWS, media\n"
        "for number in range(10**9):\n"
        "    embedding_file.write(pathlib.Path(sys.argv[1]), media(number), ROWS.data)\n"
        "    if number == 20: print('going', flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"going\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    cache = cache_of(tmp_path, 10**6)
    assert len(cache) >= 21
    for number in range(21):
        found = cache.get(media(number).ref.key)
        assert found is not None
        assert embedding_file.map_rows(found.ref).shape == (TOKENS, ROW)
    assert not list(tmp_path.glob("*.tmp"))


async def test_a_file_that_somebody_removed_is_forgotten(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    done = await cache.put(media(1), ROWS)
    assert len(cache.read_file(done.ref.key)) == SIZE
    Path(done.ref.path).unlink()
    assert cache.get(done.ref.key) is None
    assert cache.used_bytes == 0
    with pytest.raises(MediaLost):
        cache.read_file(done.ref.key)


def test_the_budget_is_at_most_half_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    (tmp_path / "a.emb").write_bytes(b"x" * 200)
    assert budget(10_000, tmp_path) == 600
    assert budget(100, tmp_path) == 100
