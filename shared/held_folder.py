"""Folders in shared memory that end with those who use them, however these end.

    <root>/rhizome.<deployment>.<bus>/          one per deployment and host: held together by its processes
        lock                                    locked while anybody holds the folder; holds the folder's id
        blobs/                                  see `shared.blobs`
        <instance name>/                        of one vision instance, held by it alone; has a `lock` of its own

A lock (flock) is released by the kernel when its process ends, so a folder without a holder was abandoned: the next
instance of the same name adopts what is in it, and after a while anybody may remove it. Folders are private to the
user. Used by the gateway, vision and the launcher.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from pathlib import Path

from shared.errors import ConfigError

LOCK = "lock"
ABANDONED_AFTER_S = 60.0
"""A folder that nobody has held or touched for so long may be removed by others."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def memory_root(asked: str) -> Path:
    """Where shared memory is: the directory asked for, else /dev/shm, else the directory for temporary files.

    Raises:
        ConfigError: the one asked for cannot be written.
    """
    if asked:
        root = Path(asked).resolve()
        if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
            raise ConfigError(f"--shared-memory-dir {asked}: not a directory that can be written")
        return root
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK | os.X_OK) else Path(tempfile.gettempdir()).resolve()


def deployment_folder(root: Path, deployment: str, nats_url: str) -> Path:
    """The folder of a deployment; the bus is in its name because two deployments may be called alike."""
    bus = hashlib.blake2b(nats_url.encode(), digest_size=4).hexdigest()
    return root / f"rhizome.{deployment}.{bus}"


class HeldFolder:
    """A folder that this process holds until `release`. Made if it is not there."""

    def __init__(self, path: Path, *, alone: bool) -> None:
        """
        Args:
            alone: nobody else may hold it.

        Raises:
            ConfigError: it cannot be made, belongs to another user, or is held by another process (`alone`).
        """
        self.path = path
        self._fd = -1
        while self._fd < 0:
            self._fd = _hold(path, alone)
        self.id = _identity(self._fd)
        """Equal for all processes that see this very folder, and for no others."""

    def touch(self) -> None:
        """Say that it is in use: its age counts from now. Call more often than `ABANDONED_AFTER_S`."""
        os.utime(self._fd)

    def release(self) -> None:
        """Let go and leave what is in it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Let go and remove it with all that is in it, unless others hold it too."""
        if self._fd >= 0:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.path, ignore_errors=True)
            except BlockingIOError:
                pass
            self.release()


def remove_abandoned(path: Path, after_s: float = ABANDONED_AFTER_S) -> bool:
    """Remove a folder that nobody holds and nobody has touched for `after_s` seconds. Returns whether it did."""
    try:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if time.time() - os.fstat(fd).st_mtime < after_s:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def remove_all_abandoned(root: Path, deployment: str, after_s: float = ABANDONED_AFTER_S) -> list[Path]:
    """Remove what ended processes of a deployment left in shared memory; returns the folders removed."""
    removed = []
    for folder in root.glob(f"rhizome.{deployment}.*"):
        removed += [inner for inner in folder.glob("*/") if remove_abandoned(inner, after_s)]
        if remove_abandoned(folder, after_s):
            removed.append(folder)
    return removed


def _hold(path: Path, alone: bool) -> int:
    """Lock the folder's file; -1 if the folder was removed meanwhile."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(f"{path} belongs to another user: choose another --shared-memory-dir or --deployment")
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return -1
    except OSError as fault:
        raise ConfigError(f"{path}: {fault.strerror}. Choose another --shared-memory-dir") from fault
    try:
        _lock(fd, alone)
        if os.stat(path / LOCK).st_ino == os.fstat(fd).st_ino:
            return fd
    except BlockingIOError as fault:
        os.close(fd)
        raise ConfigError(f"{path} is held by another process: give this instance another --name") from fault
    except FileNotFoundError:
        pass
    os.close(fd)
    return -1


def _lock(fd: int, alone: bool) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_size == 0:
            os.write(fd, secrets.token_hex(16).encode())
        os.utime(fd)
    except BlockingIOError:
        if alone:
            raise
    if not alone:
        fcntl.flock(fd, fcntl.LOCK_SH)  # waits only for one who writes the id or removes the folder


def _identity(fd: int) -> str:
    token = os.pread(fd, 64, 0)
    boot = _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""
    return hashlib.blake2b(token + boot, digest_size=8).hexdigest()
