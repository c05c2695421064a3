from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.held_folder import HeldFolder, deployment_folder, memory_root, remove_abandoned, remove_all_abandoned

HOLD = """
import sys, pathlib
from shared.held_folder import HeldFolder
held = HeldFolder(pathlib.Path(sys.argv[1]), alone=sys.argv[2] == "alone")
print(held.id, flush=True)
sys.stdin.read()
"""


class Holder:
    """A folder held by another process."""

    def __init__(self, path: Path, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.id = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    made: list[Holder] = []
    yield made
    for holder in made:
        holder.kill()


def age(folder: Path, seconds: float) -> None:
    past_s = (folder / "lock").stat().st_mtime - seconds
    os.utime(folder / "lock", (past_s, past_s))


def test_those_who_see_the_same_folder_show_the_same_id(tmp_path: Path, holders: list[Holder]) -> None:
    ours = HeldFolder(tmp_path / "a", alone=False)
    holders.append(Holder(tmp_path / "a", "together"))
    other = HeldFolder(tmp_path / "b", alone=False)
    assert ours.id == holders[0].id
    assert ours.id != other.id
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_folder_held_alone_cannot_be_held_twice_until_its_holder_is_killed(
    tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(Holder(tmp_path / "a", "alone"))
    with pytest.raises(ConfigError, match="another --name"):
        HeldFolder(tmp_path / "a", alone=True)
    (tmp_path / "a" / "left").write_text("behind")
    holders[0].kill()
    heir = HeldFolder(tmp_path / "a", alone=True)
    assert (heir.path / "left").read_text() == "behind"
    assert heir.id == holders[0].id


def test_a_folder_is_removed_by_its_last_holder(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path / "a", "together"))
    ours = HeldFolder(tmp_path / "a", alone=False)
    ours.remove()
    assert (tmp_path / "a").is_dir()
    ours = HeldFolder(tmp_path / "a", alone=False)
    holders[0].kill()
    ours.remove()
    assert not (tmp_path / "a").exists()
    ours.remove()
    ours.release()


def test_only_folders_without_a_holder_that_are_old_are_abandoned(tmp_path: Path, holders: list[Holder]) -> None:
    folder = tmp_path / "a"
    holders.append(Holder(folder, "alone"))
    age(folder, 100)
    assert not remove_abandoned(folder)
    holders[0].kill()
    (folder / "lock").touch()
    assert not remove_abandoned(folder)
    age(folder, 100)
    assert remove_abandoned(folder)
    assert not folder.exists()
    assert not remove_abandoned(folder)


def test_a_touch_makes_it_young_again(tmp_path: Path) -> None:
    held = HeldFolder(tmp_path / "a", alone=True)
    age(held.path, 100)
    held.touch()
    held.release()
    assert not remove_abandoned(held.path)


def test_what_ended_processes_of_a_deployment_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = HeldFolder(tmp_path / "rhizome.blue.0001", alone=False)
    live = HeldFolder(mine.path / "vision-0", alone=True)
    dead = HeldFolder(mine.path / "vision-1", alone=True)
    gone = HeldFolder(tmp_path / "rhizome.blue.0002", alone=False)
    other = HeldFolder(tmp_path / "rhizome.green.0001", alone=False)
    (mine.path / "blobs").mkdir()
    for folder in (mine, live, dead, gone, other):
        age(folder.path, 100)
    for folder in (dead, gone, other):
        folder.release()
    assert set(remove_all_abandoned(tmp_path, "blue")) == {dead.path, gone.path}
    assert (mine.path / "blobs").is_dir()
    assert live.path.is_dir()
    assert other.path.is_dir()


def test_a_path_that_is_no_folder_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(ConfigError):
            HeldFolder(tmp_path / name, alone=False)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="another user"):
        HeldFolder(tmp_path / "a", alone=False)


def test_shared_memory_is_where_the_flag_says_or_found(tmp_path: Path) -> None:
    assert memory_root(str(tmp_path)) == tmp_path.resolve()
    assert memory_root("").is_dir()
    with pytest.raises(ConfigError, match="--shared-memory-dir /absent"):
        memory_root("/absent")


def test_deployments_of_one_name_on_two_servers_do_not_meet(tmp_path: Path) -> None:
    one = deployment_folder(tmp_path, "default", "nats://127.0.0.1:1")
    two = deployment_folder(tmp_path, "default", "nats://127.0.0.1:2")
    assert one != two
    assert one.name.startswith("rhizome.default.")
