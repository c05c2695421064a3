"""The kernel for Hopper alone, which no interpreter runs: what the compiler makes of it. GPU tests check results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("match", ["int4 g128 T64", "int4 g128 T1024"])
def test_matrix_instructions_run_on_their_own_and_nothing_spills(tmp_path: Path, match: str) -> None:
    """The assembler waits for each instruction where it cannot tell that its registers are left alone: results stay
    right, and take twice as long."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    table = tmp_path / "table.json"
    command = [sys.executable, "-m", "benchmarks.kernel_sections.compile_sm90", "--sass", "--early", "--jobs", "1"]
    command += ["--match", match, "--skip", "direct", "--json", str(table)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    usages = [row for row in json.loads(table.read_text()) if row["kernel"] == "_hopper_product_kernel"]
    assert usages
    for usage in usages:
        assert usage["stack_bytes"] == 0
        assert usage["wgmma"] >= 8
        assert usage["wgmma_waits"] < usage["wgmma"]
        assert usage["mma"] == 0
