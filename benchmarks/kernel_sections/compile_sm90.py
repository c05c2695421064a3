"""Compile every launch case for Hopper without a GPU and report what each kernel needs of a multiprocessor.

    python -m benchmarks.kernel_sections.compile_sm90 [--match NAME] [--skip NAME] [--jobs N] [--sass] [--early]

Launchers run unchanged on CPU tensors; a stand-in driver names the target, and every launch stops after compilation. On
a GPU machine the same call fills Triton's cache in parallel before benchmarks, since target and arguments are the same.
The exit status is 1 when a kernel that is no search candidate spills registers (fp32 ones, for tests, may).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

MOST_STACK_BYTES = 32
"""A few registers saved across a loop cost nothing measurable."""
EXEMPT = re.compile(r"candidate|fp32")


@dataclass(frozen=True)
class Usage:
    """Resources of one compiled kernel."""

    case: str
    kernel: str
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    """Not 0: registers spilled to local memory."""
    shared_bytes: int
    wgmma: int
    """Hopper matrix instructions in the machine code (HGMMA; QGMMA with 8-bit floats), with `--sass`."""
    wgmma_waits: int
    """For any of those before. As many as there are of them: the assembler did not let them run on their own."""
    mma: int
    """Older matrix instructions (HMMA)."""
    async_copies: int
    """Copies that the pipeline issues ahead (LDGSTS)."""
    local_accesses: int
    """LDL and STL."""


class HopperDriver:
    """Just enough of a Triton driver to compile."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def all_cases() -> dict[str, Callable[[], None]]:
    """Launches by name. Imported here: kernels' modules must not be before Triton is told not to interpret."""
    from benchmarks.kernel_sections import launch_cases, quantized_cases

    return launch_cases.CASES | quantized_cases.CASES


def compile_cases(names: list[str], sass: bool, early: bool) -> list[Usage]:
    """Compile the named launch cases in this process."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from services.worker.kernels.overlap import launch_early

    if early:
        launch_early()
    compiled: list[tuple[str, Any]] = []
    launch = JITFunction.run

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, kernel))
        return kernel

    driver.set_active(HopperDriver())
    JITFunction.run = compile_instead
    found, cases = [], all_cases()
    for name in names:
        compiled.clear()
        cases[name]()
        found += [usage(name, kernel_name, kernel, sass) for kernel_name, kernel in compiled]
    return found


def usage(case: str, name: str, kernel: Any, sass: bool) -> Usage:
    """Read registers, stack and instruction counts off the machine code."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        code = ""
        if sass:
            code = subprocess.run(
                [tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
            ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert found is not None, resources
    registers, stack = found.groups()
    return Usage(
        case, name, kernel.metadata.num_warps, kernel.metadata.num_stages, int(registers), int(stack),
        kernel.metadata.shared, len(re.findall(r"\b[HQ]GMMA", code)),
        len(re.findall(r"\bWARPGROUP\.DEPBAR", code)), len(re.findall(r"\bHMMA", code)),
        len(re.findall(r"\bLDGSTS", code)), len(re.findall(r"\b(?:LDL|STL)\b", code)),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--skip", help="not the cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sass", action="store_true", help="disassemble and count instructions")
    parser.add_argument("--early", action="store_true", help="as for models with packed weights (overlap.py)")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()

    names = [
        name for name in all_cases() if options.match in name and (options.skip is None or options.skip not in name)
    ]
    jobs = max(1, min(options.jobs, len(names)))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        shares = [pool.submit(compile_cases, names[i::jobs], options.sass, options.early) for i in range(jobs)]
        table = sorted((row for share in shares for row in share.result()), key=lambda row: names.index(row.case))
    print(f"{'case':44} {'kernel':28} warps stages regs stack shared   GMMA waits HMMA LDGSTS LDL+STL")
    for row in table:
        print(
            f"{row.case:44} {row.kernel:28} {row.num_warps:5} {row.num_stages:6} {row.registers:4} {row.stack_bytes:5} "
            f"{row.shared_bytes:6} {row.wgmma:6} {row.wgmma_waits:5} {row.mma:4} {row.async_copies:6} "
            f"{row.local_accesses:7}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in table], indent=1))
    spilling = [row for row in table if row.stack_bytes > MOST_STACK_BYTES and not EXEMPT.search(row.case)]
    for row in spilling:
        print(f"{row.case} {row.kernel} spills {row.stack_bytes} bytes a thread")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
