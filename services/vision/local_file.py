"""`file:` URLs, for operators who allow a folder. Everything else on the disk stays out of reach."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.errors import InvalidRequest


def read_allowed(url: str, folders: Sequence[Path], max_bytes: int) -> bytes:
    """The bytes of a regular file inside one of the folders, links followed. Blocks: call it in a thread.

    Args:
        folders: resolved paths.

    Raises:
        InvalidRequest: not inside, not there, not a regular file, or larger than `max_bytes`.
    """
    parts = urlsplit(url)
    name = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or "\0" in name or not name:
        raise InvalidRequest("a file: URL must look like file:///folder/image.png")
    if not folders:
        raise InvalidRequest("file: URLs are not allowed (the operator may with --allowed-media-folder)")
    outside = InvalidRequest("the file is not in a folder that --allowed-media-folder names")
    try:
        path = Path(name).resolve()
        if not _inside(path, folders):
            raise outside
        # Not a device or pipe that would block; not a link put there since.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not _inside(_opened(fd, path), folders):
                raise outside
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise InvalidRequest("the file: URL names no regular file")
            if found.st_size > max_bytes:
                raise InvalidRequest(f"the file of {found.st_size:,} bytes is over the limit of {max_bytes:,}")
            return file.read(max_bytes)
    except (OSError, RuntimeError) as fault:
        raise InvalidRequest(f"the file cannot be read: {getattr(fault, 'strerror', None) or fault}") from fault


def _inside(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _opened(fd: int, path: Path) -> Path:
    """Where the open file really is, for the case that a folder on its path was replaced by a link."""
    link = Path(f"/proc/self/fd/{fd}")
    return link.readlink() if link.exists() else path.resolve()
