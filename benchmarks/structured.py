"""Constrained decoding: forced runs against sampling every token against no grammar, and what masks cost.

The tasks run on a whole deployment over HTTP (`system`); the cost of masks is measured in the scheduler alone, with
the vocabulary of the model and of `--tokenizer` (`masks`). On a GPU, `--shape 8B --tokenizer DIR` serves random weights
of that shape behind a real tokenizer: then the grammar writes the documents, and only the speed means something.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.report import Report
from benchmarks.stack import Deployment, free_port, model_folder
from benchmarks.structured_sections import mask_path, system
from benchmarks.structured_sections.tasks import TASKS
from tests.gpu.shapes import SHAPES

SECTIONS = ("system", "masks")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=system.VARIANTS, default=list(system.VARIANTS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--per-client", type=int, default=3, help="documents per client")
    parser.add_argument("--mask-rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct")
    parser.add_argument("--tokenizer", type=Path, help="another directory with tokenizer.json, for masks and --shape")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape on a GPU, with --tokenizer")
    parser.add_argument("--quick", action="store_true", help="one task, one client")
    args = parser.parse_args()
    if args.quick:
        args.tasks, args.concurrency, args.per_client, args.mask_rows = args.tasks[:1], [1], 1, [1, 8]
    report = Report("structured", args)
    with tempfile.TemporaryDirectory(prefix="rhizome-structured-") as scratch:
        other = None if args.tokenizer is None else _with_config(args.tokenizer, Path(scratch), args.shape or "8B")
        folder = other if args.shape and other is not None else model_folder(args.model_path)
        figures: dict[str, Any] = {}
        if "system" in args.sections:
            figures["system"] = _system(report, folder, args)
        if "masks" in args.sections:
            folders = [folder, *([other] if other is not None and other != folder else [])]
            figures["masks"] = [row for each in folders for row in mask_path.measure(each, args.mask_rows)]
            _show_masks(report, figures["masks"])
    report.finish(figures)


def _with_config(tokenizer: Path, scratch: Path, shape: str) -> Path:
    """A model directory of a shape around somebody's tokenizer."""
    folder = scratch / shape
    folder.mkdir()
    shutil.copy(tokenizer / "tokenizer.json", folder)
    text = orjson.loads((tokenizer / "tokenizer.json").read_bytes())
    ids = [*text["model"]["vocab"].values(), *(added["id"] for added in text["added_tokens"])]
    size = -(-(max(ids) + 1) // 64) * 64
    by_text = {added["content"]: added["id"] for added in text["added_tokens"]}
    eos = next((by_text[name] for name in ("<|eot_id|>", "<|end_of_text|>", "<|im_end|>") if name in by_text), 0)
    config = {**SHAPES[shape], "vocab_size": size, "eos_token_id": eos, "bos_token_id": eos}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    return folder


def _system(report: Report, folder: Path, args: argparse.Namespace) -> list[system.Row]:
    nats_port = free_port()
    flags = [f"--model-path={folder}", f"--nats-port={nats_port}"]
    if args.shape:
        flags += ["--load-format=dummy", "--device=cuda", "--dtype=bfloat16", "--context-length=4096"]
    with Deployment(*flags) as deployment:
        tasks = {name: TASKS[name] for name in args.tasks}
        rows = uvloop.run(
            system.measure(
                deployment.url, f"nats://127.0.0.1:{nats_port}", tasks, args.concurrency, args.per_client, args.variants
            )
        )
    columns = ("task", "concurrency", "variant", "tokens_per_s", "latency_s", "ms_per_token", "tokens", "forced_share",
               "ended", "steps", "step_ms", "mask_wait_ms", "mask_wait_share", "idle_share")  # fmt: skip
    report.table("tasks", columns, [[row[c] for c in columns] for row in rows])
    return rows


def _show_masks(report: Report, rows: list[mask_path.Row]) -> None:
    columns = ("vocabulary", "grammar", "rows", "jump", "us_per_row", "bytes_per_row_step", "without_interning",
               "hit_rate", "forced_share")  # fmt: skip
    shown = [[str(row[c]) if c == "jump" else row[c] for c in columns] for row in rows]
    report.table("masks, per row and step", columns, shown)


if __name__ == "__main__":
    main()
