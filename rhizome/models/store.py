"""The user's model cache: below `$RHIZOME_HOME/models`, else `~/.cache/rhizome/models`.

A model directory appears in one rename when it is complete, under a lock, so a launch that was killed half-way
leaves nothing that looks done and two launches never build the same model twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LAYOUT = "2"
"""Of the models in the cache. Another number than before: what an older version built is built anew."""
Say = Callable[[str], None]
"""Takes one line of progress for the person at the terminal."""


def home() -> Path:
    """The directory that Rhizome keeps its own files in."""
    given = os.environ.get("RHIZOME_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "rhizome"


def model_dir(name: str) -> Path:
    """Where the model of that name lives once it is there."""
    return home() / "models" / LAYOUT / name


def is_complete(folder: Path) -> bool:
    """True if `folder` has a configuration, a tokenizer and every weight file that its index names."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)


def build_once(name: str, build: Callable[[Path], None], say: Say) -> Path:
    """The cached model `name`; if it is absent, `build(empty directory)` makes it.

    Whatever `build` raises passes through, and what it had written is removed.
    """
    target = model_dir(name)
    if is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{name}.lock", say):
        if is_complete(target):  # another launch built it while this one waited
            return target
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        try:
            build(partial)
            _make_readable(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _make_readable(folder: Path) -> None:
    # Temporary directories and safetensors' files are private; a container's user must be able to read the model.
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    # The kernel drops the lock with the process, so a killed launch blocks nobody. The file itself stays.
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another launch is fetching the model: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
