"""Where machine code is kept, and that kernels do without such a place. Each case is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy as np
from services.worker.cpu_kernels.jit import is_compiled
from services.worker.cpu_kernels.rms_norm import rms_norm

before, out = is_compiled(), np.empty((2, 3), np.float32)
rms_norm(np.ones((2, 3), np.float32), np.ones(3, np.float32), np.float32(0.0), out)
print(before, is_compiled(), out.tolist() == [[1.0] * 3] * 2)
"""


def run(cache: Path) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_what_one_process_compiled_the_next_one_finds(tmp_path: Path) -> None:
    assert run(tmp_path) == "False True True"
    assert run(tmp_path) == "True True True"


def test_where_nothing_can_be_written_kernels_are_compiled_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "below") == "False False True"
